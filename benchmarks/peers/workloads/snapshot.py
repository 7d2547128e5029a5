"""A snapshot that somebody holds open, as a report or a backup does: nothing dead can be removed, and claims must not slow down.

"tenths" are the rates over each tenth of the jobs; a peer that wades through its dead rows gets slower from one to the next.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.request import urlopen

from peers.drain import drain, make_task, prepare
from peers.worker import Worker, working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "snapshot"
TITLE = "With a snapshot held open"
ROUNDS = 1
PEERS = ("howdah", "graphile-worker", "pgqueuer", "pg-boss", "oban")
RATE, BATCHES = 2000, 100
PATIENCE = 60
#: Ten slots claim ten and a hundred ahead of them.
SMALL_CLAIMS = 10


def takes(peer: Peer) -> bool:
    """Tell whether it is one of the fastest, or oban, which is most like Howdah."""
    return peer.name in PEERS


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Drain beside a snapshot; Howdah in small claims and under a steady stream as well."""
    count = bench.of(quick=20_000, standard=100_000)
    if bench.wants(case := f"{count:,} jobs"):
        yield {"case": case, **_slowing(await drain(bench, peer, count, snapshot=True))}
    if peer.name != "howdah":
        return
    count = bench.of(quick=30_000, standard=300_000)
    if bench.wants(case := f"{count:,} jobs in claims of 100"):
        small = {"slots": SMALL_CLAIMS}
        yield {"case": case, **_slowing(await drain(bench, peer, count, snapshot=True, settings=small, seconds=120))}
    if bench.wants(case := f"a stream of {RATE:,} jobs/s"):
        yield {"case": case, **await _streamed(bench, peer)}


def _slowing(figures: Figures) -> Figures:
    tenths = figures["tenths"]
    return figures | {"last_to_first": tenths[-1] / max(tenths[0], 1e-9)}


async def _streamed(bench: Bench, peer: Peer) -> Figures:
    """Send a steady stream; asks the worker's metrics for the claims of each tenth of the time."""
    seconds = bench.of(quick=10, standard=120, full=600)
    database = await prepare(bench, peer, 0)
    installed = bench.installed[peer.name]
    count = RATE * seconds
    task = make_task(bench, peer, database, count=count + 1, handler="latency")
    task["settings"] = {**task["settings"], "port": bench.free_port()}
    async with (
        bench.server.connected(database) as holder,
        holder.transaction(isolation="repeatable_read"),
        working(installed, task) as worker,
    ):
        await holder.fetchval("select count(*) from pg_class")
        await bench.pause(3)
        stream = {**task, "count": count, "batch": RATE // BATCHES, "gap": 1 / BATCHES}
        async with working(installed, stream, "flood") as sender:
            claims = await _claims(bench, task["settings"]["port"], seconds)
            sent = await sender.word("sent", PATIENCE)
            waits = await _waits(worker)
    await bench.server.drop(database)
    return {
        "seconds": seconds,
        "late": sent["late"],
        "claim_p99_ms": [round(p99, 2) for p99 in claims],
        "wait_p99_ms": _tenths_p99(waits),
        "settings": task["settings"],
    }


async def _waits(worker: Worker) -> list[float]:
    waits: list[float] = (await worker.word("waits", PATIENCE))["waits"]
    return waits[1:]


def _tenths_p99(waits: list[float]) -> list[float]:
    size = len(waits) // 10
    tenths = (sorted(waits[size * n : size * (n + 1)]) for n in range(10))
    return [round(tenth[int(len(tenth) * 0.99)] * 1000, 2) for tenth in tenths]


async def _claims(bench: Bench, port: int, seconds: float) -> list[float]:
    """Give the p99 of the claims in each tenth of the time, in milliseconds, by the worker's own histogram."""
    found: list[float] = []
    before = _histogram(port)
    for _ in range(10):
        began = time.monotonic()
        await bench.pause(max(seconds / 10 - (time.monotonic() - began), 0))
        after = _histogram(port)
        found.append(_p99({bound: count - before.get(bound, 0) for bound, count in after.items()}) * 1000)
        before = after
    return found


def _histogram(port: int) -> dict[float, float]:
    """Read the buckets of howdah_claim_seconds, upper bound to how many lie below it."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    buckets: dict[float, float] = {}
    for line in lines:
        if line.startswith('howdah_claim_seconds_bucket{le="'):
            bound, _, count = line.removeprefix('howdah_claim_seconds_bucket{le="').partition('"} ')
            buckets[float(bound)] = float(count)
    return buckets


def _p99(buckets: dict[float, float]) -> float:
    """Give p99 by the straight line within its bucket, as Prometheus does."""
    total = buckets.get(float("inf"), 0)
    lower = below = 0.0
    for bound, count in sorted(buckets.items()):
        if count >= total * 0.99 and bound != float("inf"):
            return lower + (bound - lower) * (total * 0.99 - below) / max(count - below, 1)
        lower, below = bound, count
    return lower
