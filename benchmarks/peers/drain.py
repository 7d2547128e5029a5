"""The measure of all throughput: a full table, one process, and the time until nothing is unfinished in the table.

"Durable" is from the first handler's start until a poll of the table sees no unfinished job. "Handled" is from the first
handler's end to the last one's; a peer that writes late shows a gap between the two.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from peers.peer import filled, payload
from peers.worker import PeerError, run_to_end, working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from peers.bench import Bench, Figures
    from peers.peer import Peer

FIRST_JOB, LAST_ACK = 60, 60
#: A poll of the table, in seconds.
POLL = 0.005


async def drain(
    bench: Bench,
    peer: Peer,
    count: int,
    *,
    form: str = "best",
    handler: str = "noop",
    size: int = 100,
    failing: str = "false",
    patience: float = 120,
    snapshot: bool = False,
) -> Figures:
    """Fill a fresh database with jobs and let one process drain it."""
    database = await prepare(bench, peer, count, size=size, failing=failing)
    task = make_task(bench, peer, database, count=count, handler=handler, form=form)
    async with _watching(bench, peer, database, snapshot=snapshot) as connection:
        async with working(bench.installed[peer.name], task) as worker:
            first = await worker.word("first", FIRST_JOB)
            handled = await worker.word("handled", patience)
            finished = await _finished(connection, peer, LAST_ACK) if peer.finished else handled["at"]
        figures = {
            "jobs": count,
            "settings": task["settings"],
            "durable": count / (finished - first["at"]),
            "seconds": finished - first["at"],
            "handled": count / max(handled["at"] - first["at"], 1e-9),
            "cpu_us": handled["cpu"] / count * 1e6,
            "rss": handled["rss"],
            "tenths": [round(rate) for rate in handled["tenths"]],
        }
    await bench.server.drop(database)
    return figures


async def prepare(
    bench: Bench, peer: Peer, count: int, *, size: int = 100, failing: str = "false", settle: bool = True
) -> str:
    """Make a fresh database with a peer's tables and so many jobs in them; gives its name."""
    database = f"bench_{peer.name.replace('-', '_')}"
    await bench.server.fresh(database)
    task = make_task(bench, peer, database, count=count)
    await run_to_end(bench.installed[peer.name], task, "setup")
    if count and peer.fill:
        async with bench.server.connected(database) as connection:
            await connection.execute(filled(peer, count, payload(size, bench.filler, failing=failing)))
    elif count:
        await run_to_end(bench.installed[peer.name], task, "fill", 600)
    async with bench.server.connected(database) as connection:
        await connection.execute("create table accounts (id int primary key, hits int) with (fillfactor = 50)")
        await connection.execute("insert into accounts select n, 0 from generate_series(0, 999) n")
    if settle:
        await bench.server.settle(database)
    return database


def make_task(bench: Bench, peer: Peer, database: str, **wishes: Any) -> dict[str, Any]:
    """Make what a peer's process is told."""
    form = wishes.pop("form", "best")
    return {
        "url": bench.server.url(database),
        "redis": bench.redis,
        "settings": peer.settings(form),
        "handler": "noop",
        "count": 0,
        **wishes,
    }


@asynccontextmanager
async def _watching(bench: Bench, peer: Peer, database: str, *, snapshot: bool) -> AsyncIterator[asyncpg.Connection]:
    """Lend the connection that polls; and hold a snapshot open on another if that is asked for."""
    async with bench.server.connected(database) as connection:
        if not snapshot:
            yield connection
            return
        async with bench.server.connected(database) as holder, holder.transaction(isolation="repeatable_read"):
            await holder.fetchval("select count(*) from pg_class")
            yield connection


async def _finished(connection: asyncpg.Connection, peer: Peer, patience: float) -> float:
    """Poll until no job is unfinished; gives when that was seen."""
    end = time.monotonic() + patience
    statement = await connection.prepare(peer.finished)
    while time.monotonic() < end:
        if await statement.fetchval():
            return time.time()
        await asyncio.sleep(POLL)
    raise PeerError(f"its jobs were not finished {patience:.0f} s after the last handler's end")
