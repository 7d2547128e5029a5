"""What Howdah set out to reach, each with what was measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.results import Results

OURS, FLOOR = "howdah", "bare asyncpg"


@dataclass(frozen=True)
class Target:
    """One line: what, the bound, and what was found."""

    what: str
    bound: float
    found: float
    unit: str = "x"
    most: bool = False

    @property
    def met(self) -> bool:
        """Tell whether it was reached."""
        return self.found <= self.bound if self.most else self.found >= self.bound


def targets(results: Results) -> Iterator[Target]:
    """Give every target for which there are results."""
    yield from _against(results, "drain", {"graphile-worker": 1.0, "pgqueuer": 2.5}, "at its best")
    yield from _against(results, "bounded", {"graphile-worker": 2.0, "pgqueuer": 2.0, "pg-boss": 2.0}, "100 at once")
    yield from _realistic(results)
    yield from _latencies(results)
    yield from _enqueue(results)
    for case in results.cases("depth"):
        yield from _single(results, ("depth", case, "ratio"), f"beside {case}, against none", 0.95)
    yield from _snapshot(results)
    yield from _costs(results)
    yield from _scaling(results)


def _against(results: Results, workload: str, bounds: dict[str, float], how: str) -> Iterator[Target]:
    for case in results.cases(workload):
        ours = results.median(workload, case, OURS, "durable")
        for peer, bound in bounds.items():
            theirs = results.median(workload, case, peer, "durable")
            if ours and theirs:
                yield Target(f"drain of {case}, {how}, against {peer}", bound, ours / theirs)


def _realistic(results: Results) -> Iterator[Target]:
    for case in results.cases("realistic"):
        ours = results.median("realistic", case, OURS, "durable")
        theirs = {
            peer: results.median("realistic", case, peer, "durable") or 0.0
            for peer in results.peers("realistic", case)
            if peer != OURS
        }
        if ours and theirs:
            first = max(theirs, key=lambda peer: theirs[peer])
            yield Target(f"{case}, against the fastest peer ({first})", 1.0, ours / theirs[first])


def _latencies(results: Results) -> Iterator[Target]:
    ours = results.median("latency", "idle", OURS, "p50")
    floor = results.median("latency", "idle", FLOOR, "p50")
    if ours and floor:
        yield Target("idle latency p50, against the floor", 2.0, ours / floor, most=True)
    yield from _single(results, ("latency", "idle", "p99"), "idle latency p99", 8.0, unit="ms", most=True)
    yield from _single(
        results, ("load", "half of the peak", "p99"), "wait at half of the peak, p99", 25.0, unit="ms", most=True
    )


def _enqueue(results: Results) -> Iterator[Target]:
    bounds = {
        "one per transaction": 0.85,
        "enqueue_many, no schema": 0.7,
        "enqueue_payloads, no schema": 0.7,
        "enqueue_many, with a schema": 0.4,
    }
    for case in results.cases("enqueue"):
        what, bound = f"enqueue: {case}, against a bare INSERT", bounds.get(case, 0.95)
        if case not in bounds:
            what = f"enqueue: {case}, against the same without any NOTIFY"
        yield from _single(results, ("enqueue", case, "ratio"), what, bound)


def _snapshot(results: Results) -> Iterator[Target]:
    for case in results.cases("snapshot"):
        yield from _single(
            results, ("snapshot", case, "last_to_first"), f"snapshot held, {case}: last tenth against first", 0.9
        )
        for record in results.records("snapshot", case, OURS):
            if "claim_p99_ms" in record:
                first, last = (
                    statistics.median(part) for part in (record["claim_p99_ms"][:3], record["claim_p99_ms"][-3:])
                )
                what = f"snapshot held, {case}, {record['seconds']} s: claim p99, last tenths against first"
                yield Target(what, 1.25, last / max(first, 1e-9), most=True)


def _costs(results: Results) -> Iterator[Target]:
    bounds = {
        "wal_per_job": ("WAL a job", 2048.0, "bytes"),
        "commits_per_job": ("commits a job under load", 0.05, ""),
        "cpu_us": ("CPU of the worker a no-op job", 12.0, "µs"),
        "rss": ("memory of the worker at its peak", 100.0, "MB"),
    }
    for figure, (what, bound, unit) in bounds.items():
        yield from _single(results, ("costs", "under load", figure), what, bound, unit=unit, most=True)
    yield from _single(
        results,
        ("costs", "idle", "transactions_per_second"),
        "transactions a second of an idle worker",
        0.5,
        unit="",
        most=True,
    )


def _scaling(results: Results) -> Iterator[Target]:
    rates = [results.median("scaling", case, OURS, "durable") or 0.0 for case in results.cases("scaling")]
    if len(rates) > 1:
        worst = min(after / max(before, 1e-9) for before, after in pairwise(rates))
        yield Target("twice as many daemons, the worst step (never falls; 3 % are noise)", 0.97, worst)


def _single(
    results: Results,
    place: tuple[str, str, str],
    what: str,
    bound: float,
    *,
    unit: str = "x",
    most: bool = False,
) -> Iterator[Target]:
    workload, case, figure = place
    found = results.median(workload, case, OURS, figure)
    if found is not None:
        yield Target(what, bound, found, unit, most)
