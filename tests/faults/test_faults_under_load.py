"""Under load, with real faults: every job ends exactly once, whoever is killed and whatever line is cut."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.cluster import Database, connect_to
from support.daemon import howdah
from support.eventually import aeventually
from support.facts import RECORD, count_ends, each_ended_once, end_of, is_empty, make_runs, runs
from support.jobs import enqueue, enqueue_many
from support.proxy import proxied

from howdah.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

TTL = 2

#: Half of the jobs do nothing, a tenth takes a while, some write in a transaction with their completion.
MIXED = """
@handler("work")
async def work(job: Job) -> dict[str, Any]:
    if job.payload["n"] % 10 == 0:
        await asyncio.sleep(0.05)
    return {"n": job.payload["n"]}

@handler("effect", transaction=True, max_attempts=50, backoff=lambda attempt: 0.05)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into public.effects (job) values ($1)", job.id)
"""

#: A job that never ends where it runs first.
STAYS_ONCE = """
@handler("stays_once")
async def stays_once(job: Job) -> None:
    await begin(job)
    if await (await pool()).fetchval("select count(*) = 1 from public.runs where job = $1", job.id):
        await asyncio.sleep(600)
"""


def jobs(count: int, kind: str = "work") -> list[dict[str, Any]]:
    return [{"kind": kind, "payload": {"n": n}} for n in range(count)]


@pytest.mark.fault("Process", "kill -9 while ten jobs run", "all of them run elsewhere within ttl + 2 s")
async def test_what_a_killed_worker_ran_runs_elsewhere_within_its_ttl_and_two_seconds(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await make_runs(connection)
    handlers = RECORD + STAYS_ONCE
    first = await daemon(handlers, queues="default:10", lease_ttl=TTL)
    rows = await enqueue_many(connection, *([{"kind": "stays_once"}] * 10))
    await aeventually(lambda: have_run(connection, 10))
    await daemon(handlers, queues="default:10", lease_ttl=TTL)
    first.kill()
    killed = time.monotonic()
    await aeventually(lambda: have_run(connection, 20), timeout=20)
    seconds = time.monotonic() - killed
    await aeventually(lambda: is_empty(connection))
    assert await each_ended_once(connection, [row["id"] for row in rows])
    assert seconds < TTL + 2
    figures.faults += 1
    figures.recovered(seconds)
    await count_ends(connection, figures)


@pytest.mark.fault(
    "Process", "one of two workers is killed under load", "the other completes its jobs, no attempt counted"
)
async def test_the_jobs_of_a_killed_daemon_are_completed_by_the_other_and_no_attempt_is_counted(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await make_runs(connection)
    first = await daemon(RECORD, queues="default:10", lease_ttl=TTL)
    second = await daemon(RECORD, queues="default:10", lease_ttl=TTL)
    rows = await enqueue_many(connection, *([{"kind": "record", "payload": {"seconds": 0.1}}] * 150))
    await aeventually(lambda: has_run(connection, first.process.pid))
    held = await aeventually(lambda: held_by(connection, first.worker))
    first.kill()
    await aeventually(lambda: is_empty(connection), timeout=20)

    assert await each_ended_once(connection, [row["id"] for row in rows])
    assert await connection.fetch("select distinct attempt, crashes from howdah.job_history") == [(1, 0)]
    # What had ended before its row could say so is held by the dead one, too; all of it was done again by the other.
    rescued = sum(line["jobs"] for line in second.log_events("rescued"))
    assert 0 < rescued <= len(rows)
    assert await second.metric("howdah_rescued_total") == rescued
    workers = await connection.fetch("select distinct leased_by from howdah.job_history where id = any ($1)", held)
    assert (second.worker,) in [tuple(row) for row in workers]
    assert await connection.fetchval("select count(*) from howdah.workers") == 1
    figures.faults += 1
    await count_ends(connection, figures)


@pytest.mark.fault(
    "Connections", "the wire breaks at random, under load", "each job ends once, each effect is there once"
)
async def test_a_wire_that_breaks_at_random_loses_and_doubles_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    await connection.execute("create table public.effects (job bigint)")
    async with proxied(database.url) as wire:
        worker = await daemon(MIXED, url=wire.url, queues="default:50", poll_interval=60)
        rows = await enqueue_many(connection, *jobs(5000), *jobs(200, "effect"))
        # An answer that is lost is what matters: what it told of has happened.
        wire.lose_answers, wire.lose_questions = 0.02, 0.005
        wire.cuts = 0
        await aeventually(lambda: is_almost_empty(connection, 20), timeout=45)
        while wire.cuts <= 5:  # chance decides how often it breaks
            rows += await enqueue_many(connection, *jobs(500))
            await aeventually(lambda: is_almost_empty(connection, 20), timeout=45)
        wire.lose_answers = wire.lose_questions = 0.0
        healed = time.monotonic()
        await aeventually(lambda: is_empty(connection), timeout=20)
        figures.recovered(time.monotonic() - healed)
        figures.jobs, figures.faults = len(rows), (cuts := wire.cuts)
        assert await each_ended_once(connection, [row["id"] for row in rows])
        assert cuts > 5
        reconnects = await worker.metrics()
        assert sum(value for name, value in reconnects.items() if name.startswith("howdah_reconnects_total")) >= 1
        effects = [row["job"] for row in await connection.fetch("select job from public.effects order by job")]
        assert effects == sorted(row["id"] for row in rows[5000:])
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Connections", "answers are lost at random, no history is kept", "no ack that was written counts as lost"
)
async def test_with_no_history_kept_an_ack_whose_answer_was_lost_is_no_lost_lease(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    async with proxied(database.url) as wire:
        worker = await daemon(url=wire.url, queues="default:20", history_days=0)
        await enqueue_many(connection, *jobs(1500))
        wire.lose_answers = 0.05
        await aeventually(lambda: is_almost_empty(connection, 20), timeout=30)
        while wire.cuts <= 3:  # chance decides how often it breaks
            await enqueue_many(connection, *jobs(500))
            await aeventually(lambda: is_almost_empty(connection, 20), timeout=30)
        wire.lose_answers = 0.0
        figures.faults = wire.cuts
        await aeventually(lambda: is_empty(connection), timeout=20)
        assert await worker.stop() == 0
    figures.jobs = worker.log_events("stopped")[0]["processed"]
    assert await connection.fetchval("select count(*) from howdah.job_history") == 0
    assert worker.log_events("stopped")[0]["processed"] >= 1500
    assert not worker.log_events("lost lease")


@pytest.mark.fault(
    "Server", "it crashes under load, twice", "nothing is lost or doubled; work within 2 s of its return"
)
async def test_a_server_that_crashes_under_load_loses_and_doubles_nothing(
    daemon: StartDaemon, server: EmbeddedPostgres, figures: Figures
) -> None:
    database = Database(server.url(), "postgres")
    connection = await connect_to(database)
    await connection.execute("create table public.effects (job bigint)")
    worker = await daemon(MIXED, url=database.url, queues="default:50", poll_interval=60)
    rows = await enqueue_many(connection, *jobs(3000), *jobs(200, "effect"))
    ids = [row["id"] for row in rows]
    await aeventually(lambda: has_history(connection, 300))
    for _ in range(2):
        await asyncio.to_thread(server.restart, immediate=True)
        figures.faults += 1
        connection.terminate()
        connection = await connect_to(database)
        back = time.monotonic()
        await end_of(connection, await enqueue_and_note(connection, ids))
        figures.recovered(time.monotonic() - back)
        assert time.monotonic() - back < 2
    await aeventually(lambda: is_empty(connection), timeout=30)
    assert await each_ended_once(connection, ids)
    figures.jobs = len(ids)
    effects = [row["job"] for row in await connection.fetch("select job from public.effects order by job")]
    assert effects == sorted(row["id"] for row in rows[3000:])
    assert await connection.fetchval("select max(crashes) from howdah.job_history") == 0
    assert await worker.stop() == 0
    connection.terminate()


@pytest.mark.fault("Server", "all connections ended at once, five times", "they are made anew, and work goes on")
async def test_terminated_connections_are_made_anew(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    worker = await daemon(poll_interval=60)
    for _ in range(5):
        await connection.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
            where application_name like 'howdah %' and datname = current_database()"""
        )
        began = time.monotonic()
        rows = await enqueue_many(connection, *jobs(50))
        await aeventually(lambda rows=rows: have_ended(connection, rows), timeout=3)
        figures.recovered(time.monotonic() - began)
        figures.jobs += len(rows)
        figures.faults += 1
    assert worker.process.poll() is None
    assert await connection.fetchval("select count(*) from howdah.workers") == 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated server of the test's own, which it may crash."""
    folder = tmp_path / "postgres"
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)  # the server may run as another user
    server = EmbeddedPostgres(folder, settings={"shared_buffers": "32MB", "max_connections": "50"})
    with server:
        done = howdah("migrate", folder=tmp_path, HOWDAH_DATABASE_URL=server.url())
        assert done.returncode == 0, done.stderr
        yield server


async def enqueue_and_note(connection: asyncpg.Connection, ids: list[int]) -> int:
    job = await enqueue(connection, "work", {"n": 1}, priority=10)
    ids.append(job)
    return job


async def have_run(connection: asyncpg.Connection, count: int) -> bool:
    return await connection.fetchval("select count(*) from public.runs") >= count


async def has_run(connection: asyncpg.Connection, pid: int) -> bool:
    return pid in await runs(connection, "pid")


async def held_by(connection: asyncpg.Connection, worker: int) -> list[int]:
    return [row["id"] for row in await connection.fetch("select id from howdah.jobs where leased_by = $1", worker)]


async def is_almost_empty(connection: asyncpg.Connection, left: int) -> bool:
    return await connection.fetchval("select count(*) from howdah.jobs") <= left


async def has_history(connection: asyncpg.Connection, count: int) -> bool:
    return await connection.fetchval("select count(*) from howdah.job_history") >= count


async def have_ended(connection: asyncpg.Connection, rows: list[asyncpg.Record]) -> bool:
    ids = [row["id"] for row in rows]
    return await connection.fetchval("select count(*) from howdah.job_history where id = any ($1)", ids) == len(ids)
