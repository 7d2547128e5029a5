"""The verdict: what was measured against the stated bounds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from soak.workers import MOST_CONNECTIONS, TTL

if TYPE_CHECKING:
    from soak.faults import Fault
    from soak.samples import Sample

#: Resident memory of a worker may grow by so much an hour, after its first minutes; only a life that is long enough is judged.
MEMORY_BOUND, WARM_UP, LONG_ENOUGH = 20.0, 300.0, 600.0
#: The jobs' table with its indexes may grow by so much in the last third of the time.
TABLE_BOUND = 1.25
#: What was enqueued is done at this part of the rate at least.
RATE_BOUND = 0.98
#: Seconds until work flows again, and until the jobs of a dead worker are with others: its ttl, a look, and a server that may be away.
FLOW_BOUND, BACK_BOUND = 30.0, 3.0 * TTL
_MB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One bound: what it is of, what was found, and whether it holds; None: there was too little time to tell."""

    what: str
    found: str
    holds: bool | None


def judge(
    samples: list[Sample],
    faults: list[Fault],
    *,
    rate: float,
    seconds: float,
    asked: int,
    end: Sample,
    broken: list[str],
    unasked: list[str],
    errors: int,
) -> list[Finding]:
    """Compare all of it with the bounds."""
    return [
        Finding("every job ended once, every effect is there once", "; ".join(broken) or "proved", not broken),
        Finding("no worker left but by a fault", "; ".join(unasked) or "none did", not unasked),
        Finding("no worker logged an error", f"{errors} lines", errors == 0),
        _rate(asked, rate, seconds),
        _done(end),
        *_memory(samples),
        _connections(samples),
        _table(samples, seconds),
        _limit(samples),
        *_recoveries(faults),
    ]


def _rate(asked: int, rate: float, seconds: float) -> Finding:
    reached = asked / seconds
    return Finding(
        f"{RATE_BOUND:.0%} of the rate was enqueued",
        f"{reached:,.0f} of {rate:,.0f} jobs/s",
        reached >= rate * RATE_BOUND,
    )


def _done(end: Sample) -> Finding:
    """What is left when the load ends is what waits for its time, and the work of a moment."""
    committed = (end.finished or 0) + (end.live or 0)
    part = (end.finished or 0) / max(committed, 1)
    found = f"{part:.2%}; {end.live:,} were left, the oldest ready one {end.oldest or 0:.1f} s old"
    return Finding(f"{RATE_BOUND:.0%} of what was enqueued had ended when the load did", found, part >= RATE_BOUND)


def lives(samples: list[Sample]) -> dict[tuple[int, int], list[tuple[float, int, int]]]:
    """Give the memory of every life of every worker: (seconds, RSS, PSS)."""
    found: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
    for sample in samples:
        for number, process in sample.workers.items():
            found.setdefault((number, process.life), []).append((sample.at, process.rss, process.pss))
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Give the slope of the least squares line."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _memory(samples: list[Sample]) -> list[Finding]:
    findings = []
    for (worker, life), points in sorted(lives(samples).items()):
        later = [(at, rss / _MB) for at, rss, _ in points if at - points[0][0] >= WARM_UP]
        if not later or later[-1][0] - points[0][0] < LONG_ENOUGH:
            continue
        growth = slope(later) * 3600
        found = f"{growth:+.1f} MB/h over {(later[-1][0] - later[0][0]) / 60:.0f} minutes, at {median(y for _, y in later):.0f} MB"
        what = f"RSS of worker {worker}, life {life}, grows by less than {MEMORY_BOUND:g} MB/h after {WARM_UP / 60:g} minutes"
        findings.append(Finding(what, found, growth < MEMORY_BOUND))
    return findings or [
        Finding("RSS does not grow", f"no life was {LONG_ENOUGH / 60:g} minutes long: not judged", None)
    ]


def _connections(samples: list[Sample]) -> Finding:
    seen = [s.connections for s in samples if s.connections is not None]
    workers = max(len(s.workers) for s in samples)
    # A worker that was killed or frozen may leave its sessions behind for a moment, beside those of its next life.
    most = (workers + 1) * MOST_CONNECTIONS
    found = f"{median(seen):.0f} in the middle, {max(seen)} at most"
    return Finding(f"never more than {most} connections of {workers} workers", found, max(seen) <= most)


def _table(samples: list[Sample], seconds: float) -> Finding:
    sizes = [(s.at, s.jobs_bytes + (s.index_bytes or 0)) for s in samples if s.jobs_bytes is not None]
    before = max((size for at, size in sizes if at < seconds * 2 / 3), default=1)
    after = max(size for _, size in sizes)
    holds = after <= before * TABLE_BOUND if seconds >= LONG_ENOUGH else None
    found = f"{before / _MB:.0f} MB in the first two thirds, {after / _MB:.0f} MB at most"
    return Finding(
        f"howdah.jobs with its indexes grows by less than {TABLE_BOUND - 1:.0%} in the last third", found, holds
    )


def _limit(samples: list[Sample]) -> Finding:
    most = max((s.held or 0) for s in samples)
    return Finding("a limit of 20 is never exceeded", f"{most} at most, in {len(samples)} looks", most <= 20)


def _recoveries(faults: list[Fault]) -> list[Finding]:
    unhealed = [f for f in faults if f.flowing is None or (f.held and f.back is None)]
    flows = [f for f in faults if f.flowing is not None]
    backs = [f for f in faults if f.back is not None]
    slowest = max(flows, key=lambda f: f.flowing or 0.0, default=None)
    latest = max(backs, key=lambda f: f.back or 0.0, default=None)
    findings = [Finding("every fault was healed", f"{len(faults) - len(unhealed)} of {len(faults)}", not unhealed)]
    if slowest is not None and slowest.flowing is not None:
        found = f"{median(f.flowing or 0.0 for f in flows):.1f} s in the middle, {slowest.flowing:.1f} s at most ({slowest.name})"
        findings.append(
            Finding(
                f"a new job is through within a second again {FLOW_BOUND:g} s after a fault",
                found,
                slowest.flowing <= FLOW_BOUND,
            )
        )
    if latest is not None and latest.back is not None:
        found = f"{median(f.back or 0.0 for f in backs):.1f} s in the middle, {latest.back:.1f} s at most"
        findings.append(
            Finding(
                f"jobs of a dead or frozen worker are with others within {BACK_BOUND:g} s (ttl {TTL} s)",
                found,
                latest.back <= BACK_BOUND,
            )
        )
    return findings
