"""The harness that runs Howdah beside its peers: what can be seen of it without any of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from peers.adapters import all_peers
from peers.bench import Bench
from peers.peer import filled, payload, pick
from peers.results import Results
from peers.tables import rates_table, targets_table
from peers.workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path


def results(folder: Path, *records: dict[str, Any]) -> Results:
    file = folder / "results.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Results(file)


def drained(peer: str, rate: float, **more: Any) -> dict[str, Any]:
    return {"workload": "drain", "case": "20,000 jobs", "peer": peer, "durable": rate, **more}


def test_every_peer_is_pinned_and_runs_in_some_workload() -> None:
    peers = all_peers()
    assert next(iter(peers)) == "howdah"
    for peer in peers.values():
        separator = "@" if peer.node else "=="
        assert peer.name == "howdah" or all(separator in requirement for requirement in peer.requires), peer.name
        assert any(workload.takes(peer) for workload in WORKLOADS.values()), peer.name
        if peer.fill:
            assert "generate_series(1, 7) n" in filled(peer, 7, payload(100, "x" * 100))


@pytest.mark.parametrize("only", ["", "stream|history", "^100"])
def test_only_the_cases_that_were_asked_for_are_wanted(only: str, tmp_path: Path) -> None:
    server: Any = None
    bench = Bench(server=server, redis="", installed={}, size="quick", results=tmp_path / "results", only=only)
    assert bench.wants("100,000,000 rows of history")
    assert bench.wants("5,000,000 queued") is (not only)


def test_a_peer_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"'celery' is no peer; there are howdah, graphile-worker"):
        pick(all_peers(), ["celery"])


def test_the_median_of_the_rounds_decides_and_a_loss_is_shown_as_one(tmp_path: Path) -> None:
    rounds = [drained("howdah", rate) for rate in (9_000, 30_000, 10_000)]
    found = results(tmp_path, *rounds, drained("graphile-worker", 12_000), drained("pgqueuer", 4_000))
    table = targets_table(found)
    assert "| drain of 20,000 jobs, at its best, against graphile-worker | ≥ 1.00 x | 0.83 x | **missed** |" in table
    assert "| drain of 20,000 jobs, at its best, against pgqueuer | ≥ 2.50 x | 2.50 x | met |" in table


def test_what_was_not_done_in_time_is_marked_and_what_failed_is_kept(tmp_path: Path) -> None:
    failed = {"workload": "drain", "peer": "saq", "error": "PeerError: it ended"}
    found = results(tmp_path, drained("howdah", 20_000), drained("oban", 300, unfinished=2_000), failed)
    assert rates_table(found, "drain").splitlines()[2:] == ["| howdah | 20,000 |", "| oban | 300* |"]
    assert [record["peer"] for record in found.failures()] == ["saq"]
