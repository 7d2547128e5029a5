"""From just before the enqueue to the start of the handler, the worker otherwise idle; single jobs, 30 ms apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.drain import make_task, prepare
from peers.worker import working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "latency"
TITLE = "Latency of an idle worker, enqueue to start"
ROUNDS = 2
GAP = 0.03
START = 20


def takes(_peer: Peer) -> bool:
    """Take all of them."""
    return True


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Send single jobs to an idle worker."""
    count = bench.of(quick=100, standard=250)
    database = await prepare(bench, peer, 0)
    installed = bench.installed[peer.name]
    # One more: the first tells only that the worker works.
    task = make_task(bench, peer, database, count=count + 1, handler="latency", form="latency")
    async with working(installed, task) as worker:
        await bench.pause(bench.of(quick=2, standard=4))
        async with working(installed, {**task, "count": count, "gap": GAP}, "send") as sender:
            waits = (await worker.word("waits", START + count * 1.5))["waits"][1:]
            await sender.word("ok", START)
    await bench.server.drop(database)
    yield {"case": "idle", "jobs": count, "settings": task["settings"], **quantiles(waits)}


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Give p50, p95, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(int(len(ordered) * place), len(ordered) - 1)] * 1000 for name, place in places.items()}
