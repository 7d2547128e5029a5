"""The measure of all throughput: a full table, one process, and the time until nothing is unfinished in the table.

"Durable" is from the first handler's start until a poll of the table sees no unfinished job. "Handled" is from the first
handler's start to the last one's end; a peer that writes late shows a gap between the two.
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
    from peers.peer import Peer, Settings

#: How long is waited for the first handler, and for the table after the last one; and for all between, in seconds.
FIRST_JOB, LAST_ACK, WINDOW = 60, 60, 60.0
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
    seconds: float = WINDOW,
    snapshot: bool = False,
    settings: Settings | None = None,
) -> Figures:
    """Fill a fresh database with jobs and let one process drain it.

    What is not drained after so many seconds is stopped; its rate is that of the jobs that it did.
    """
    database = await prepare(bench, peer, count, size=size, failing=failing)
    async with _watching(bench, database, snapshot=snapshot) as connection:
        figures = await run_worker(
            bench,
            peer,
            connection,
            database,
            count=count,
            handler=handler,
            settings=settings or peer.settings(form),
            seconds=seconds,
        )
    await bench.server.drop(database)
    return figures


async def run_worker(
    bench: Bench, peer: Peer, connection: asyncpg.Connection, database: str, *, until_empty: bool = True, **wishes: Any
) -> Figures:
    """Let one process do so many jobs, of a table that is full already."""
    task = make_task(bench, peer, database, **wishes)
    async with working(bench.installed[peer.name], task) as worker:
        first = await worker.word("first", FIRST_JOB)
        handled = await worker.word("handled", task["seconds"] + LAST_ACK)
        whole = handled["handled"] >= task["count"]
        ended = handled["at"]
        if whole and until_empty and peer.finished:
            ended = await finished(connection, peer.finished, LAST_ACK)
        if not until_empty:
            await worker.leave(LAST_ACK)  # the next one must find nothing in a dead one's hands
    count = handled["handled"]
    return {
        "jobs": count,
        "settings": task["settings"],
        **({} if whole else {"unfinished": task["count"] - count}),
        "durable": count / (ended - first["at"]),
        "seconds": ended - first["at"],
        "handled": count / max(handled["at"] - first["at"], 1e-9),
        "cpu_us": handled["cpu"] / max(count, 1) * 1e6,
        "rss": handled["rss"],
        "tenths": [round(rate) for rate in handled["tenths"]],
    }


async def prepare(
    bench: Bench, peer: Peer, count: int, *, size: int = 100, failing: str = "false", settle: bool = True
) -> str:
    """Make a fresh database with a peer's tables and so many jobs in them; gives its name."""
    database = f"bench_{peer.adapter}"
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
async def _watching(bench: Bench, database: str, *, snapshot: bool) -> AsyncIterator[asyncpg.Connection]:
    """Lend the connection that polls; and hold a snapshot open on another if that is asked for."""
    async with bench.server.connected(database) as connection:
        if not snapshot:
            yield connection
            return
        async with bench.server.connected(database) as holder, holder.transaction(isolation="repeatable_read"):
            await holder.fetchval("select count(*) from pg_class")
            yield connection


async def finished(connection: asyncpg.Connection, query: str, patience: float) -> float:
    """Poll until the query is true, as when no job is unfinished; gives when that was seen."""
    end = time.monotonic() + patience
    statement = await connection.prepare(query)
    while time.monotonic() < end:
        if await statement.fetchval():
            return time.time()
        await asyncio.sleep(POLL)
    raise PeerError(f"{patience:.0f} s were not enough for: {query}")
