"""What a job costs the server and the worker, counted: bounds that no slow machine can break, stored in costs.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

if TYPE_CHECKING:
    from support.cluster import Database

JOBS = 10_000
HERE = Path(__file__).parent
BOUNDS = tomllib.loads((HERE / "costs.toml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.costs


def counted(*words: str) -> dict[str, Any]:
    """Run a program that prints figures as one JSON object."""
    command = [sys.executable, "-m", *words]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, check=True, timeout=150, env=environment)
    figures: dict[str, Any] = orjson.loads(done.stdout)
    return figures


def above(figures: dict[str, Any], bounds: dict[str, float]) -> list[str]:
    """Name the figures that are above their bounds."""
    return [
        f"{name}: {figures[name]}, at most {bound}"
        for name, bound in bounds.items()
        if figures[name] is not None and figures[name] > bound
    ]


def test_a_job_costs_the_server_few_statements_buffers_and_bytes() -> None:
    # On a server of its own: WAL is counted for the whole server, and other tests write much of it.
    figures = counted("howdah", "bench", "--json", "--jobs", str(JOBS), "--latencies", "10")
    assert figures["jobs"] == JOBS
    figures["other_claims"] = 1 - figures["heap_only_claims"]
    assert above(figures, BOUNDS["server"]) == []


def test_a_job_costs_the_worker_few_calls_and_leaves_nothing_in_memory(database: Database) -> None:
    assert above(counted("support.python_costs", database.url), BOUNDS["worker"]) == []
