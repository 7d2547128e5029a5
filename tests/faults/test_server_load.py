"""The server ends connections at random, or has none to give."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.cluster import Database
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.logins import login, name_of
from support.servers import connected, own_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import StartDaemon
    from support.figures import Figures

TTL = 3
#: The same handlers, with attempts enough for every fault.
PATIENT = JOURNAL.replace(
    '@handler("effect", transaction=True)',
    '@handler("effect", transaction=True, max_attempts=100, backoff=lambda attempt: 0.05)',
).replace('@handler("innocent")', '@handler("innocent", max_attempts=100, backoff=lambda attempt: 0.05)')


@pytest.mark.fault("Server", "connections ended at random under load", "nothing is lost or doubled; work within 2 s")
async def test_connections_that_the_server_ends_at_random_lose_and_double_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(PATIENT, queues="default:20", lease_ttl=TTL) for _ in range(2)]
    for _ in range(12):
        await enqueue_many(
            connection, *[{"kind": "innocent"}, {"kind": "effect"}, {"kind": "innocent", "limits": ["some"]}] * 10
        )
        ended = await connection.fetchval(
            """select count(pg_terminate_backend(pid)) from (
                 select pid from pg_stat_activity where application_name like 'howdah %' and datname = current_database()
                 order by random() limit 4) chosen"""
        )
        figures.faults += ended
        began = time.monotonic()
        await end_of(connection, await enqueue(connection, "innocent", priority=10))
        figures.recovered(time.monotonic() - began)
    await aeventually(lambda: is_empty(connection), timeout=20)
    await checker.check(figures=figures)
    assert figures.recovery is not None
    assert figures.recovery < 2
    assert await connection.fetchval("select max(crashes) from howdah.job_history") == 0
    for worker in workers:
        assert not worker.log_events("rescued")
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Server", "others have taken all connections", "who works goes on, who starts waits, who lost one gets it back"
)
async def test_a_server_without_a_free_connection_is_waited_for(
    daemon: StartDaemon, tmp_path: Path, figures: Figures
) -> None:
    async with (
        own_server(tmp_path / "server", max_connections="40", superuser_reserved_connections="3") as server,
        connected(server) as connection,
        login(Database(server.url(), "postgres"), "howdah_worker") as theirs,
        login(Database(server.url(), "postgres"), "howdah_worker") as late,
        login(Database(server.url(), "postgres")) as greedy,
    ):
        checker = await Checker(connection).install()
        await connection.execute("grant select, insert on public.journal, public.effect to howdah_worker")
        # Nobody is frozen while it asks for a connection: half a connection takes the place of a whole one for a minute.
        barred = f"alter role {name_of(late)} connection limit"
        first = await daemon(PATIENT, url=theirs.url, queues="default:10", lease_ttl=TTL, pool_size=1)
        await enqueue_many(connection, *[{"kind": "innocent"}, {"kind": "effect"}] * 10)
        await aeventually(lambda: is_empty(connection))
        async with all_connections(greedy) as hog:
            figures.faults += 1
            second = await daemon(PATIENT, url=late.url, ready=False, queues="default:10", lease_ttl=TTL, pool_size=1)
            await aeventually(lambda: second.log_events("database is away, waiting"))
            # Who has its connections works on.
            await enqueue_many(connection, *[{"kind": "innocent"}, {"kind": "effect"}] * 20)
            await aeventually(lambda: is_empty(connection))
            # It loses one, and somebody else is quicker than both.
            await connection.execute(f"{barred} 0")
            first.freeze()
            await connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'howdah claim'"
            )
            await hog()
            figures.faults += 1
            first.thaw()
            job = await enqueue(connection, "innocent")
            await aeventually(lambda: first.metric('howdah_reconnects_total{connection="claim"}'))
            lines = len(first.logs()), len(second.logs())
            thawed = time.monotonic()
            await aeventually(lambda: time.monotonic() - thawed > 2 * TTL / 3)
            assert first.process.poll() is None
            assert second.process.poll() is None
            assert (await connection.fetchval("select state from howdah.jobs where id = $1", job)) == "ready"
            assert len(first.logs()) - lines[0] < 5
            assert len(second.logs()) - lines[1] < 5
            await connection.execute(f"{barred} -1")
            began = time.monotonic()
        await end_of(connection, job)
        figures.recovered(time.monotonic() - began)
        await second.ready()
        await enqueue_many(connection, *[{"kind": "innocent"}, {"kind": "effect"}] * 20)
        await aeventually(lambda: is_empty(connection))
        await checker.check(figures=figures)
        for worker in (first, second):
            assert not worker.log_events("rescued")
            assert await worker.stop() == 0


@asynccontextmanager
async def all_connections(greedy: Database) -> AsyncIterator[object]:
    """Take every connection that the server gives to those who are no superusers; gives a call that waits for one more."""
    taken: list[asyncpg.Connection] = []

    async def one_more() -> bool:
        taken.append(await asyncpg.connect(greedy.url))
        return True

    async def all_of_them() -> None:
        while await one_more():
            pass

    try:
        with pytest.raises(asyncpg.PostgresError, match=r"reserved|too many"):
            await all_of_them()
        yield lambda: aeventually(one_more)
    finally:
        for one in taken:
            one.terminate()
