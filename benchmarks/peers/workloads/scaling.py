"""One, two, four and eight daemons on one server: what they drain together, from the commit of the jobs until the table is done."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from peers.drain import LAST_ACK, finished, make_task, prepare
from peers.peer import filled, payload
from peers.worker import working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "scaling"
TITLE = "Several daemons on one server"
ROUNDS = 5
DAEMONS = (1, 2, 4, 8)


def takes(peer: Peer) -> bool:
    """Take Howdah alone."""
    return peer.name == "howdah"


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Let each number of daemons drain the same."""
    for daemons in DAEMONS:
        yield {"case": f"{daemons}", **await _together(bench, peer, daemons)}


async def _together(bench: Bench, peer: Peer, daemons: int) -> Figures:
    count = bench.of(quick=20_000, standard=200_000)
    database = await prepare(bench, peer, 0)
    task = make_task(bench, peer, database, count=count)
    async with AsyncExitStack() as stack, bench.server.connected(database) as connection:
        for _ in range(daemons):
            await stack.enter_async_context(working(bench.installed[peer.name], task))
        ready = f"select count(*) = {daemons} from howdah.workers where sleeps"
        await finished(connection, ready, LAST_ACK)
        await connection.execute("checkpoint")
        await connection.execute(filled(peer, count, payload(100, bench.filler)))
        began = time.time()
        await connection.execute("select howdah.wake('default')")
        seconds = await finished(connection, peer.finished or "", LAST_ACK) - began
    await bench.server.drop(database)
    return {"jobs": count, "daemons": daemons, "durable": count / seconds, "settings": task["settings"]}
