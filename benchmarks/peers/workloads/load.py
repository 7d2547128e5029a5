"""How long jobs wait while a worker is at half of what it can do: a steady stream in batches, a hundred a second.

The peak is that of a drain just before, by the same peer; the stream, the worker and the server share the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.drain import drain, make_task, prepare
from peers.worker import working
from peers.workloads.latency import quantiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "load"
TITLE = "Waits at half of the peak"
ROUNDS = 1
BATCHES = 100
PEERS = ("howdah", "graphile-worker", "pgqueuer", "pg-boss")
#: Somebody may be far behind when the last job has been sent.
PATIENCE, CATCH_UP = 60, 180


def takes(peer: Peer) -> bool:
    """Tell whether it is one of the fastest."""
    return peer.name in PEERS


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Find the peak, then send at half of it."""
    peak = (await drain(bench, peer, 20_000))["durable"]
    batch = max(int(peak / 2 / BATCHES), 1)
    batches = BATCHES * bench.of(quick=5, standard=15)
    database = await prepare(bench, peer, 0)
    installed = bench.installed[peer.name]
    task = make_task(bench, peer, database, count=batch * batches + 1, handler="latency")
    async with working(installed, task) as worker:
        await bench.pause(3)
        stream = {**task, "count": batch * batches, "batch": batch, "gap": 1 / BATCHES}
        async with working(installed, stream, "flood") as sender:
            sent = await sender.word("sent", PATIENCE * 2)
            waits = (await worker.word("waits", CATCH_UP))["waits"][1:]
    await bench.server.drop(database)
    yield {
        "case": "half of the peak",
        "rate": batch * BATCHES,
        "peak": peak,
        "late": sent["late"],
        "settings": task["settings"],
        **quantiles(waits),
    }
