"""A primary dies and its standby takes over in the middle of work; and an address that leads to a standby."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.cluster import Database, connect_to
from support.eventually import aeventually
from support.facts import end_of, has_ended, is_empty
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
    "Server", "the primary dies, a synchronous standby takes over", "nothing is lost or doubled; work within 2 s"
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
    figures.faults += 1
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
    figures.recovered(recovery)
    await aeventually(lambda: is_empty(second), timeout=60)
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


@pytest.mark.long
@pytest.mark.fault(
    "Server", "the primary dies, a standby that lags takes over", "what it was not sent is lost; what it has ends once"
)
async def test_what_a_lagging_standby_has_ends_once_by_its_own_history(
    daemon: StartDaemon, primary: EmbeddedPostgres, standby: Standby, figures: Figures
) -> None:
    """Lost are jobs, starts and ends that were committed after the standby was cut off: asynchronous replication promises no more.

    So jobs whose end is lost are held, as the new primary sees it, by a worker that lives and has forgotten them.
    """
    connection = await connect_to(Database(primary.url(), "postgres"))
    checker = await Checker(connection).install()
    handlers = JOURNAL.replace("await journal(job", "await quick_journal(job")
    worker = await daemon(handlers, url=standby.either, queues="default:10", lease_ttl=2)
    frozen = await daemon(handlers, url=standby.either, queues="other:10", lease_ttl=2)
    rows = await enqueue_many(
        connection,
        *({"kind": "innocent", "payload": {"seconds": 1}} for _ in range(10)),
        *({"kind": "innocent", "payload": {"seconds": 1}, "queue": "other"} for _ in range(5)),
        *({"kind": "effect"} for _ in range(10)),
    )
    jobs = [row["id"] for row in rows]
    await aeventually(lambda: all_started(checker, jobs[:15]))
    await aeventually(lambda: caught_up(connection))
    frozen.freeze()
    cut = await standby.connect()
    await cut.execute("alter system set primary_conninfo = ''")
    await cut.execute("select pg_reload_conf()")
    await cut.close()
    await aeventually(lambda: nobody_follows(connection))
    forgotten = [row["id"] for row in await enqueue_many(connection, *({"kind": "innocent"} for _ in range(50)))]
    await aeventually(lambda: has_ended(connection, *jobs[:10], *jobs[15:], *forgotten))
    primary.kill()
    figures.faults += 1
    connection.terminate()
    await standby.promote()
    promoted_at = time.monotonic()

    second = await connect_to(Database(standby.url, "postgres"))
    assert await second.fetchval("select count(*) from howdah.jobs where lease is not null") >= 10
    later = await enqueue(second, "innocent")
    await end_of(second, later)
    figures.recovered(time.monotonic() - promoted_at)
    # `other` has nobody else: its jobs are taken back, and wait for somebody who serves it.
    await aeventually(lambda: has_ended(second, *jobs[:10], *jobs[15:]), timeout=20)
    figures.recovered(time.monotonic() - promoted_at)
    assert worker.log_events("the database has lost what came of jobs, leaving them to the rescue")
    await aeventually(lambda: nothing_held(second), timeout=10)
    frozen.thaw()
    await aeventually(lambda: has_ended(second, *jobs), timeout=20)
    await aeventually(lambda: is_empty(second))
    await Checker(second).check(figures=figures)
    assert await worker.stop() == 0
    assert await frozen.stop() == 0
    second.terminate()


async def all_started(checker: Checker, jobs: list[int]) -> bool:
    return len(await checker.starts(*jobs)) == len(jobs)


async def nobody_follows(primary: asyncpg.Connection) -> bool:
    return bool(await primary.fetchval("select count(*) = 0 from pg_stat_replication"))


async def nothing_held(connection: asyncpg.Connection) -> bool:
    return not await connection.fetchval("select exists (select from howdah.jobs where lease is not null)")


@pytest.mark.fault("Server", "the address leads to a standby", "a worker waits there until it is the primary")
async def test_an_address_that_leads_to_a_standby_is_waited_at_until_it_is_the_primary(
    daemon: StartDaemon, primary: EmbeddedPostgres, standby: Standby, figures: Figures
) -> None:
    connection = await connect_to(Database(primary.url(), "postgres"))
    job = await enqueue(connection)
    await aeventually(lambda: caught_up(connection))
    connection.terminate()
    worker = await daemon(url=standby.url, ready=False)
    await aeventually(lambda: "read-only" in worker.output(), timeout=20)
    primary.kill()
    figures.jobs = figures.faults = 1
    await standby.promote()
    promoted_at = time.monotonic()
    second = await connect_to(Database(standby.url, "postgres"))
    assert (await end_of(second, job))["state"] == "completed"
    figures.recovered(time.monotonic() - promoted_at)
    assert await worker.stop() == 0
    second.terminate()


async def some_ended(connection: asyncpg.Connection, count: int) -> bool:
    found: int = await connection.fetchval("select count(*) from howdah.job_history")
    return found >= count


@pytest.mark.fault(
    "Server", "a standby, or nobody, at the address", "a worker that waits there leaves when it is told to"
)
async def test_a_worker_that_was_never_let_in_leaves_when_it_is_told_to(daemon: StartDaemon, standby: Standby) -> None:
    for url in (standby.url, standby.url.replace(str(standby.port), "1")):
        worker = await daemon(url=url, ready=False)
        await aeventually(lambda worker=worker: "database is away, waiting" in worker.output(), timeout=20)
        assert await worker.stop() == 0, worker.output()
