"""What users, reports, backups and migration tools do to the tables meanwhile: workers stall at most, and go on by themselves."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.cluster import connect_to, new_database
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue

from howdah.database import CALL_TIMEOUT
from howdah.embedded.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import Connect, StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 2


@asynccontextmanager
async def load(database: Database, *, pause: float = 0.02) -> AsyncIterator[list[int]]:
    """Enqueue without end for the length of a `with`; a third are effects in a transaction. Gives the ids as they are committed."""
    connection = await connect_to(database)
    jobs: list[int] = []

    async def enqueue_some() -> None:
        while True:
            for kind in ("innocent", "innocent", "effect"):
                jobs.append(await enqueue(connection, kind, subject=f"s{len(jobs) % 5}"))
            await asyncio.sleep(pause)

    task = asyncio.create_task(enqueue_some())
    try:
        yield jobs
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        connection.terminate()


async def unhurt(connection: asyncpg.Connection, workers: list[Daemon], checker: Checker, figures: Figures) -> None:
    """Raise unless all is done, nobody was restarted or taken for dead, no job paid for it, and nothing was deadlocked."""
    await aeventually(lambda: is_empty(connection), timeout=20)
    for worker in workers:
        assert worker.process.poll() is None, worker.output()
        assert await worker.metric("howdah_rescued_total") == 0, worker.log_events("rescued")
        assert [line for line in worker.logs() if line.get("level") == "error"] == []
    hurt = await connection.fetch(
        "select id, state, crashes, errors from howdah.job_history where state <> 'completed' and state <> 'cancelled' or crashes > 0"
    )
    assert hurt == []
    await connection.execute("select pg_stat_clear_snapshot()")
    assert await connection.fetchval("select deadlocks from pg_stat_database where datname = current_database()") == 0
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Users",
    "the table of jobs locked for 5 s by DDL, then against writes by a backup",
    "workers stall and go on, none is taken for dead",
)
@pytest.mark.parametrize("seconds", [1.5, pytest.param(5, marks=pytest.mark.long)])
async def test_a_locked_table_stalls_the_workers_and_nothing_more(
    daemon: StartDaemon,
    connection: asyncpg.Connection,
    connect: Connect,
    database: Database,
    figures: Figures,
    seconds: float,
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL, lease_ttl=TTL) for _ in range(2)]
    user = await connect()
    async with load(database) as jobs:
        for mode in ("access exclusive", "share"):
            await aeventually(lambda: len(jobs) > 30)
            await user.execute(f"begin; lock table howdah.jobs in {mode} mode")
            await asyncio.sleep(seconds)  # the fault itself
            await user.execute("commit")
            figures.faults += 1
            began = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent", priority=10))
            figures.recovered(time.monotonic() - began)
    assert figures.recovery is not None
    assert figures.recovery < 2
    await unhurt(connection, workers, checker, figures)


@pytest.mark.long
@pytest.mark.fault(
    "Users",
    "the table of jobs locked for longer than any statement of the engine waits",
    "no claim takes effect behind its worker's back",
)
async def test_a_lock_that_outlasts_every_statement_leaves_no_job_behind(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL) for _ in range(2)]
    user = await connect()
    async with load(database):
        await aeventually(lambda: ended_some(connection))
        await user.execute("begin; lock table howdah.jobs in share mode")
        await asyncio.sleep(CALL_TIMEOUT + 8)  # the fault itself
        await user.execute("commit")
        figures.faults += 1
        began = time.monotonic()
        await end_of(connection, await enqueue(connection, "innocent", priority=10))
        figures.recovered(time.monotonic() - began)
    await aeventually(lambda: is_empty(connection), timeout=30)
    assert [worker.process.poll() for worker in workers] == [None, None]
    assert await connection.fetchval("select coalesce(max(crashes), 0) from howdah.job_history") == 0
    await checker.check(figures=figures)


async def ended_some(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select count(*) > 10 from howdah.job_history"))


@pytest.mark.fault(
    "Users", "columns and indexes added to the table of jobs under load", "work goes on, no statement is left broken"
)
async def test_ddl_by_a_migration_tool_is_lived_through(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL, lease_ttl=TTL) for _ in range(2)]
    tool = await connect()
    async with load(database) as jobs:
        for statement in (
            "alter table howdah.jobs add column tenant text not null default 'all of them'",
            "create index concurrently jobs_tenant on howdah.jobs (tenant)",
            "alter table howdah.job_history add column tenant text",
            "analyze howdah.jobs",
            "alter table howdah.jobs alter column tenant type varchar(100)",
            "drop index concurrently howdah.jobs_tenant",
            "alter table howdah.jobs drop column tenant",
            "alter table howdah.job_history drop column tenant",
            "vacuum full howdah.jobs",
        ):
            seen = len(jobs)
            await aeventually(lambda seen=seen: len(jobs) > seen + 9)
            await tool.execute(statement)
            figures.faults += 1
        began = time.monotonic()
        await end_of(connection, await enqueue(connection, "innocent", priority=10))
        figures.recovered(time.monotonic() - began)
    await unhurt(connection, workers, checker, figures)


USERS = (
    "select howdah.cancel(id) from (select id from howdah.jobs order by random() limit 5) few order by id",
    "select howdah.cancel_subject('s1')",
    "select howdah.enqueue('innocent', unique_key => 'k' || n, on_conflict => 'replace') from generate_series(1, 5) n",
    "select id from howdah.jobs order by id for share",
    "select id from howdah.jobs where lease is null order by id for update",
    "select count(*) from howdah.job_status",
    "select howdah.enqueue_many(jsonb_agg(jsonb_build_object('kind', 'innocent', 'unique_key', 'k' || n))) from generate_series(1, 5) n",
    "lock table howdah.jobs in row share mode",
)


@pytest.mark.fault(
    "Users",
    "transactions held open over job rows: cancels, replaces, listings for share and for update",
    "only those rows wait; no deadlock",
)
async def test_transactions_that_stay_open_over_job_rows_hold_up_those_rows_only(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL, lease_ttl=TTL) for _ in range(2)]
    chance = random.Random(7)  # noqa: S311  # what users do
    over = asyncio.Event()

    async def user() -> None:
        mine = await connect(server_settings={"lock_timeout": "1500", "deadlock_timeout": "5s"})
        while not over.is_set():
            await mine.execute("begin")
            try:
                await mine.execute(chance.choice(USERS))
                await asyncio.sleep(chance.random() * 0.6)  # it holds what it has locked
                await mine.execute(chance.choice(("commit", "rollback")))
                figures.faults += 1
            except asyncpg.LockNotAvailableError:  # two users' own business
                await mine.execute("rollback")

    async with load(database) as jobs:
        users = [asyncio.create_task(user()) for _ in range(4)]
        for _ in range(6):
            # What nobody holds goes through, whatever is held meanwhile.
            began = time.monotonic()
            probe = await enqueue(connection, "innocent", priority=10)
            await aeventually(lambda probe=probe: was_started(checker, probe), timeout=5)
            figures.recovered(time.monotonic() - began)
            await asyncio.sleep(0.4)  # of the users' time
        over.set()
        await asyncio.gather(*users)
        assert len(jobs) > 100
    await unhurt(connection, workers, checker, figures)


async def was_started(checker: Checker, job: int) -> bool:
    return bool(await checker.starts(job))


@pytest.mark.fault(
    "Users",
    "a report that reads history for long while its days are made and dropped",
    "no ack waits for more than 0.2 s; the days go later",
)
async def test_dropping_a_day_of_history_behind_a_report_holds_up_no_ack(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database, figures: Figures
) -> None:
    for days in (30, 31, 40):
        await connection.execute(old_day(days))
    await connection.execute(
        "alter table howdah.steps disable trigger all; insert into howdah.steps select n, 'old', '1', now() - interval '99 days' from generate_series(1, 50) n"
    )
    checker = await Checker(connection).install()
    report, keeper = await connect(), await connect()
    # Whoever builds an index on the steps holds up their deletion, and nothing else.
    await report.execute("begin; lock table howdah.steps in share mode")
    workers = [await daemon(JOURNAL, lease_ttl=TTL, log_level="info")]
    await end_of(connection, await enqueue(connection, "innocent"))
    await aeventually(lambda: dropped(workers[0], 3))
    assert await connection.fetchval("select count(*) from howdah.steps") == 50
    await report.execute("commit")

    await connection.execute(old_day(33))
    await connection.execute(
        "do $$ begin execute format('drop table howdah.job_history_%s', to_char((clock_timestamp() at time zone 'UTC')::date + 14, 'YYYYMMDD')); end $$"
    )
    await report.execute("begin isolation level repeatable read; select count(*) from howdah.job_history")
    slowest = 0.0
    async with load(database, pause=0.005):
        for _ in range(5):
            assert await keeper.fetch("select howdah.drop_partitions(14)") == []
            await keeper.fetchval("select howdah.make_partitions()")
            figures.faults += 2
            began = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent", priority=10), timeout=3)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1.0, slowest
        await report.execute("commit")
        began = time.monotonic()
        assert await aeventually(lambda: keeper.fetch("select howdah.drop_partitions(14)"))
        assert await keeper.fetchval("select howdah.make_partitions()") == 15
        figures.recovered(time.monotonic() - began)
    waits = await connection.fetchval(
        "select max(extract(epoch from a.at - h.finished_at))::float8 from public.audit a join howdah.job_history h on h.id = a.job_id where a.event = 'ended'"
    )
    assert waits < 1.0, waits
    assert await connection.fetchval("select count(*) from howdah.steps") == 0
    await unhurt(connection, workers, checker, figures)


def old_day(days: int) -> str:
    """Give the SQL that makes a day of history of so many days ago."""
    return f"""do $$ declare day date := (clock_timestamp() at time zone 'UTC')::date - {days}; begin
      execute format('create table howdah.job_history_%s partition of howdah.job_history for values from (%L) to (%L)',
        to_char(day, 'YYYYMMDD'), day || ' 00:00+00', (day + 1) || ' 00:00+00'); end $$"""


def dropped(worker: Daemon, count: int) -> bool:
    return len(worker.log_events("dropped history")) == count


@pytest.mark.long
@pytest.mark.fault(
    "Users",
    "pg_dump in the midst of load, restored elsewhere",
    "each job is in it once, live or ended, and what lives runs there",
)
async def test_a_backup_in_the_midst_of_work_is_whole_and_can_be_worked_on(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, tmp_path: Path, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL, lease_ttl=TTL)]
    dump = tmp_path / "dump.sql"
    async with load(database) as jobs:
        await aeventually(lambda: len(jobs) > 60)
        await connection.execute("select howdah.enqueue('innocent', '{\"seconds\": 0.5}') from generate_series(1, 4)")
        await asyncio.to_thread(run, "pg_dump", "--file", str(dump), database.url)
        figures.faults += 1
        seen = len(jobs)
        await aeventually(lambda: len(jobs) > seen + 30)
    await unhurt(connection, workers, checker, figures)

    async with new_database(empty=True) as elsewhere:
        await asyncio.to_thread(run, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(dump), elsewhere.url)
        restored = await connect_to(elsewhere)
        both = await restored.fetchval("select count(*) from howdah.jobs join howdah.job_history using (id)")
        claimed, live, ended = await restored.fetchrow(
            "select (select count(*) from howdah.jobs where lease is not null), (select count(*) from howdah.jobs), (select count(*) from howdah.job_history)"
        )
        # The dump is one moment: what was enqueued by then is in it, whole.
        audited = await restored.fetchval("select count(distinct job_id) from public.audit where event = 'created'")
        assert (both, live + ended) == (0, audited)
        assert claimed > 0
        assert ended > 0
        other = await daemon(JOURNAL, url=elsewhere.url, lease_ttl=TTL)
        began = time.monotonic()
        await end_of(restored, await enqueue(restored, "innocent"), timeout=20)
        await aeventually(lambda: is_empty(restored), timeout=20)
        figures.recovered(time.monotonic() - began)
        await Checker(restored).check()
        assert await other.stop() == 0
        restored.terminate()


def run(command: str, *arguments: str) -> None:
    subprocess.run(
        [find_binaries() / command, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "PGTZ": "UTC"},
        timeout=60,
    )
