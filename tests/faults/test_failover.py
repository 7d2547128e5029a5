"""A primary dies and its standby takes over in the middle of work; and an address that leads to a standby."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.cluster import Database, connect_to
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.standby import PRIMARY, Standby

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    tmp_path.chmod(0o711)
    with EmbeddedPostgres(tmp_path / "primary", settings=PRIMARY) as server:
        yield server


@pytest.fixture
async def standby(primary: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Standby]:
    connection = await connect_to(Database(primary.url(), "postgres"))
    await migrate(connection)
    await connection.close()
    async with Standby(primary, tmp_path / "second") as standby:
        yield standby


async def caught_up(primary: asyncpg.Connection) -> bool:
    behind = await primary.fetchval(
        "select min(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) from pg_stat_replication"
    )
    return behind == 0


@pytest.mark.fault(
    "Server", "the primary dies, its standby is promoted", "work goes on there within 2 s, nothing is lost or doubled"
)
async def test_work_goes_on_at_the_standby_that_was_promoted_and_nothing_that_it_has_is_lost_or_doubled(
    daemon: StartDaemon, primary: EmbeddedPostgres, standby: Standby, figures: Figures
) -> None:
    connection = await connect_to(Database(primary.url(), "postgres"))
    checker = await Checker(connection).install()
    # Every commit waits for the standby: what it does not have was promised to nobody.
    await connection.execute("alter system set synchronous_standby_names = '*'")
    await connection.execute("alter system set synchronous_commit = 'remote_apply'")
    await connection.execute("select pg_reload_conf()")
    worker = await daemon(JOURNAL, url=standby.either, queues="default:20")
    await enqueue_many(
        connection,
        *({"kind": "innocent", "payload": {"seconds": 0.02}} for _ in range(300)),
        *({"kind": "effect", "max_attempts": 20} for _ in range(100)),
    )
    await aeventually(lambda: some_ended(connection, 40), timeout=30)
    primary.kill()
    connection.terminate()
    died_at = time.monotonic()
    await standby.promote()
    promoted_at = time.monotonic()
    second = await connect_to(Database(standby.url, "postgres"))
    await second.execute("alter system reset synchronous_standby_names")
    await second.execute("select pg_reload_conf()")
    before = await second.fetchval("select count(*) from howdah.job_history")
    await aeventually(lambda: some_ended(second, before + 1), timeout=30)
    recovery = time.monotonic() - promoted_at
    await aeventually(lambda: is_empty(second), timeout=60)
    figures.faults = 1
    figures.recovered(recovery)
    await Checker(second).check(figures=figures)
    assert checker is not None
    effects = await second.fetchval("select count(*) - count(distinct job_id) from public.effect")
    assert effects == 0
    assert recovery < 2, (
        f"{recovery:.1f} s after the promotion, {promoted_at - died_at:.1f} s of which nobody could answer"
    )
    # LISTEN, too, has found its way: no poll for a job that comes now.
    await end_of(second, await enqueue(second, "innocent"))
    assert await worker.stop() == 0
    second.terminate()


@pytest.mark.fault("Server", "the address leads to a standby", "the worker waits until it is the primary, then works")
async def test_an_address_that_leads_to_a_standby_is_waited_at_until_it_is_the_primary(
    daemon: StartDaemon, primary: EmbeddedPostgres, standby: Standby
) -> None:
    connection = await connect_to(Database(primary.url(), "postgres"))
    job = await enqueue(connection)
    await aeventually(lambda: caught_up(connection))
    connection.terminate()
    worker = await daemon(url=standby.url, ready=False)
    await aeventually(lambda: "read-only" in worker.output(), timeout=20)
    primary.kill()
    await standby.promote()
    second = await connect_to(Database(standby.url, "postgres"))
    assert (await end_of(second, job))["state"] == "completed"
    assert await worker.stop() == 0
    second.terminate()


async def some_ended(connection: asyncpg.Connection, count: int) -> bool:
    found: int = await connection.fetchval("select count(*) from howdah.job_history")
    return found >= count


@pytest.mark.fault("Server", "nobody lets the worker in", "it waits, and leaves when it is told to")
async def test_a_worker_that_was_never_let_in_leaves_when_it_is_told_to(daemon: StartDaemon, standby: Standby) -> None:
    for url in (standby.url, standby.url.replace(str(standby.port), "1")):
        worker = await daemon(url=url, ready=False)
        await aeventually(lambda worker=worker: "database is away, waiting" in worker.output(), timeout=20)
        assert await worker.stop() == 0, worker.output()
