"""What a job costs the server: bounds that no slow machine can break."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

JOBS = 10_000

pytestmark = pytest.mark.costs


@pytest.fixture
def figures() -> dict[str, Any]:
    # On a server of its own: WAL is counted for the whole server, and other tests write much of it.
    command = [sys.executable, "-m", "howdah", "bench", "--json", "--jobs", str(JOBS), "--latencies", "10"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    return orjson.loads(done.stdout)


def test_a_job_costs_few_statements_little_wal_and_one_index_entry(figures: dict[str, Any]) -> None:
    assert figures["jobs"] == JOBS
    assert figures["commits_per_job"] <= 0.05
    assert figures["wal_bytes_per_job"] <= 2048
    assert figures["heap_only_claims"] >= 0.95
    if figures["statements_per_job"] is not None:
        assert figures["statements_per_job"] <= 0.05
