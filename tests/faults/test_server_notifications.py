"""The server's queue of notifications fills up, because somebody listens and sits in an open transaction."""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, is_empty, sleeps
from support.jobs import enqueue, enqueue_many
from support.servers import connected, own_server

from howdah.embedded.binaries import _candidates, server_major

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import StartDaemon
    from support.figures import Figures

    from howdah.embedded import EmbeddedPostgres

#: The first release whose queue can be made small; before, it is 8 GB.
SMALL_QUEUES = 17
WORD = "x" * 7000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server with the smallest queue of notifications, half a megabyte."""
    folder = next((folder for folder in _candidates() if (server_major(folder) or 0) >= SMALL_QUEUES), None)
    if folder is None:
        pytest.skip("no PostgreSQL 17 or later is here: before, the queue has 8 GB")
    async with own_server(tmp_path / "server", binaries=folder, max_notify_queue_pages="64") as server:
        yield server


@asynccontextmanager
async def full(server: EmbeddedPostgres) -> AsyncIterator[None]:
    """Keep the queue full: somebody listens in an open transaction, and somebody talks until nobody can any more."""
    async with connected(server) as holder, connected(server) as talker:
        await holder.execute("listen news")
        await holder.execute("begin; select 1")
        with pytest.raises(asyncpg.PostgresError, match="too many notifications"):
            await talk(talker)
        yield
        await holder.execute("rollback")


@pytest.mark.fault(
    "Server", "the queue of notifications is full", "enqueues, acks and cancels commit as ever; jobs start by polling"
)
async def test_with_a_full_queue_of_notifications_nothing_of_ours_fails_and_jobs_start_by_polling(
    daemon: StartDaemon, server: EmbeddedPostgres, figures: Figures
) -> None:
    async with connected(server) as connection:
        checker = await Checker(connection).install()
        worker = await daemon(JOURNAL, url=server.url(), queues="default:10", lease_ttl=2)
        await aeventually(lambda: worker.metric("howdah_listener_up"))
        async with full(server):
            figures.faults += 1
            await aeventually(lambda: sleeps(connection))
            began = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent"))
            assert time.monotonic() - began < 2
            # Whatever else notifies: times, keys, dependencies, cancels, people who wait, acks of what others wait for.
            rows = await enqueue_many(connection, *({"kind": "effect", "limits": ["one"]} for _ in range(20)))
            first = await enqueue(connection, "innocent", {"seconds": 0.5})
            await connection.execute("select howdah.watch($1, 'anna')", first)
            second = await enqueue(connection, "innocent", depends_on=[first])
            late = await enqueue(connection, "innocent", delay=timedelta(hours=1))
            running = await enqueue(connection, "innocent", {"seconds": 600})
            await aeventually(lambda: checker.starts(running))
            await connection.execute("select howdah.cancel(id) from unnest($1::bigint[]) id", [late, running])
            await connection.execute("select howdah.resume('default')")
            for job in (rows[-1]["id"], second, running):
                await end_of(connection, job, timeout=15)  # a ttl and an answer late, until it counts as deaf
            # Who comes now hears nothing, and says so.
            other = await daemon(JOURNAL, url=server.url(), queues="default:10", lease_ttl=3)
            await enqueue_many(connection, *({"kind": "innocent"} for _ in range(50)))
            await aeventually(lambda: is_empty(connection))
            assert await other.metric("howdah_listener_up") == 0
            assert await other.stop() == 0
        began = time.monotonic()
        await aeventually(lambda: worker.metric("howdah_listener_up"))  # it counted as deaf, and tries again by itself
        heard = await worker.metric("howdah_wakes_total")
        await aeventually(lambda: sleeps(connection))
        await end_of(connection, await enqueue(connection, "innocent"))
        assert await worker.metric("howdah_wakes_total") > heard
        figures.recovered(time.monotonic() - began)
        await checker.check(figures=figures)
        assert await worker.stop() == 0
        assert not worker.log_events("an outcome could not be stored")


@pytest.mark.fault(
    "Server", "notifications by the megabyte", "a worker reads them all, also while its main loop stands"
)
async def test_a_worker_never_holds_up_the_queue_of_notifications_also_while_a_handler_blocks_it(
    daemon: StartDaemon, server: EmbeddedPostgres, figures: Figures
) -> None:
    handlers = """
@handler("work")
async def work(job: Job) -> None:
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.02)

@handler("effect", transaction=True)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("select 1")
    await asyncio.sleep(600)
"""
    async with connected(server) as connection, connected(server) as talker:
        worker = await daemon(handlers, url=server.url())
        await aeventually(lambda: worker.metric("howdah_listener_up"))
        await enqueue(connection, "effect")  # a handler's own transaction is open all the time
        await enqueue(connection)
        await aeventually(lambda: (worker.folder / "began").exists())
        for n in range(300):  # four times as much as there is room for
            await aeventually(lambda: has_room(connection))
            await talker.execute("select pg_notify('howdah_control', $1)", f"ended {n} {WORD}")
            figures.faults += 1
        await aeventually(lambda: has_room(connection))
        (worker.folder / "go").touch()


async def talk(connection: asyncpg.Connection) -> None:
    """Notify for as long as the queue takes it."""
    while True:
        await connection.execute("select pg_notify('news', $1)", f"{secrets.token_hex(8)} {WORD}")


async def has_room(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select pg_notification_queue_usage() < 0.3"))
