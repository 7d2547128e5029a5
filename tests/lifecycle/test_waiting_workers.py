"""Jobs that wait for jobs, and batches, with real workers: one of them killed in the middle, one deaf."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.checker import JOURNAL, Checker
from support.daemon import howdah, write_handlers
from support.eventually import aeventually
from support.facts import end_of, is_empty, outcomes
from support.jobs import enqueue, enqueue_many, status

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

TTL = 1
#: Members that add members to their own batch, in the commit of their own end; and one that fails.
HANDLERS = (
    JOURNAL
    + """
@handler("grow", transaction=True)
async def grow(job: Job, connection: asyncpg.Connection) -> None:
    await quick_journal(job, "start")
    await connection.execute("insert into public.effect values ($1, $2)", job.id, job.attempt)
    for _ in range(job.payload["more"]):
        await connection.execute(
            "select howdah.enqueue('innocent', jsonb_build_object('seconds', 0.01), batch => $1)", job.batch)
    await asyncio.sleep(0.02)
    await quick_journal(job, "end")

@handler("fail", max_attempts=1)
async def fail(job: Job) -> None:
    await quick_journal(job, "start")
    raise ValueError("no")

@handler("deaf")
async def deaf(job: Job) -> None:
    pass
"""
)
NEVER = 60


@pytest.mark.faults
@pytest.mark.fault("Process", "killed in the middle of jobs that wait for one another", "they run in order, each once")
async def test_a_diamond_and_a_chain_run_in_order_though_a_worker_is_killed_in_the_middle(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(HANDLERS, lease_ttl=TTL, queues="default:3") for _ in range(2)]
    short, long = {"seconds": 0.02}, {"seconds": 0.5}
    top = await enqueue(connection, "innocent", short)
    sides = [await enqueue(connection, "innocent", long, depends_on=[top]) for _ in range(6)]
    bottom = await enqueue(connection, "innocent", short, depends_on=sides)
    last = bottom
    for _ in range(10):
        last = await enqueue(connection, "innocent", short, depends_on=[last])

    async def is_held() -> Any:
        return await connection.fetchval(
            "select exists (select from howdah.jobs where leased_by = $1)", workers[0].worker
        )

    await aeventually(lambda: checker.starts(*sides))
    await aeventually(is_held)
    workers[0].kill()
    assert (await end_of(connection, last, timeout=20))["state"] == "completed"
    await aeventually(lambda: is_empty(connection))
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.faults
@pytest.mark.fault("Process", "killed in the middle of a batch that grows", "the job behind it runs once, at its end")
async def test_the_job_behind_a_batch_runs_once_though_a_worker_is_killed_and_members_join(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(HANDLERS, lease_ttl=TTL, queues="default:4") for _ in range(2)]
    async with connection.transaction():
        batch = await connection.fetchval("select howdah.create_batch('innocent')")
        jobs = [{"kind": "grow", "payload": {"more": n % 3}, "batch": batch} for n in range(44)]
        jobs += [{"kind": "fail", "batch": batch}] * 3
        jobs += [{"kind": "innocent", "payload": {"seconds": 0.6}, "batch": batch}] * 2
        members = [row["id"] for row in await enqueue_many(connection, *jobs)]
        members.append(await enqueue(connection, "innocent", batch=batch, depends_on=[members[0]]))
    await aeventually(lambda: checker.starts(*members[:20]))
    workers[0].kill()
    row = await end_of(connection, batch, timeout=20)
    await aeventually(lambda: is_empty(connection))
    assert row["state"] == "completed"
    assert row["headers"]["batch"]["cancelled"] == 0
    assert row["headers"]["batch"]["dead"] >= 3
    assert sum(row["headers"]["batch"].values()) == await connection.fetchval(
        "select count(*) from howdah.job_history where batch = $1", batch
    )
    assert len(await checker.starts(batch)) == 1
    figures.faults += 1
    await checker.check(figures=figures)


async def test_what_needs_a_job_that_fails_is_cancelled_to_the_end_and_the_rest_runs(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    await daemon(HANDLERS, poll_interval=NEVER)
    async with connection.transaction():
        batch = await connection.fetchval("select howdah.create_batch('innocent')")
        first = await enqueue(connection, "fail")
        second = await enqueue(connection, "innocent", depends_on=[first], batch=batch)
        third = await enqueue(connection, "innocent", depends_on=[second], batch=batch)
        fourth = await enqueue(connection, "innocent", depends_on=[third], on_failed_dependency="run")
    assert (await end_of(connection, batch))["headers"]["batch"] == {"completed": 0, "dead": 0, "cancelled": 2}
    await end_of(connection, fourth)
    await aeventually(lambda: is_empty(connection))
    assert await outcomes(connection) == {"dead": 1, "cancelled": 2, "completed": 2}
    assert (await status(connection, third))["cancel_reason"] == f"it depends on job {second}, which is cancelled"
    await checker.check()


async def test_until_empty_does_not_leave_before_what_waits_has_run(
    connection: asyncpg.Connection, database: Database, tmp_path: Path
) -> None:
    checker = await Checker(connection).install()
    write_handlers(tmp_path, HANDLERS)
    async with connection.transaction():
        batch = await connection.fetchval("select howdah.create_batch('innocent')")
        last = await enqueue(connection, "grow", {"more": 3}, batch=batch)
        for _ in range(5):
            last = await enqueue(connection, "innocent", depends_on=[last])
        await enqueue(connection, "innocent", depends_on=[batch, last])
        await connection.execute("select howdah.create_batch('innocent')")
    done = howdah("run", "--until-empty", "--max-seconds", "20", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
    assert done.returncode == 0, done.stderr
    assert await outcomes(connection) == {"completed": 12}
    assert await is_empty(connection)
    await checker.check()


async def test_a_deaf_worker_lets_go_what_waits_within_a_second_or_so(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connect is refused
        await daemon(
            HANDLERS,
            listen_database_url=f"postgresql://postgres@127.0.0.1:{taken.getsockname()[1]}/postgres",
            poll_interval=NEVER,
        )
        first = await enqueue(connection, "deaf")
        last = await enqueue(connection, "deaf", depends_on=[first])
        assert (await end_of(connection, last, timeout=2.5))["state"] == "completed"
        # What no ack could let go: it had ended before.
        batch = await connection.fetchval("select howdah.create_batch('deaf')")
        assert (await end_of(connection, batch, timeout=2.5))["state"] == "completed"


async def test_a_chain_goes_on_without_waiting_for_polls(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    """What is let go has an old id: it lies behind the marks of the worker that it wakes."""
    await daemon(poll_interval=NEVER)
    async with connection.transaction():
        last = await enqueue(connection)
        for _ in range(15):
            last = await enqueue(connection, depends_on=[last])
    assert (await end_of(connection, last, timeout=NEVER / 3))["state"] == "completed"
