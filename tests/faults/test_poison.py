"""A job that brings its worker down is found and buried, and no other job pays for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended, is_empty
from support.jobs import add_worker, claim, enqueue, enqueue_many, live

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 1

HANDLERS = (
    JOURNAL
    + """
@handler("poison", max_attempts=10)
async def poison(job: Job) -> None:
    await journal(job, "start")
    os.kill(os.getpid(), signal.SIGKILL)

@handler("once", max_attempts=1)
async def once(job: Job) -> None:
    await journal(job, "start")
    if "kill" in job.payload:
        os.kill(os.getpid(), signal.SIGKILL)
    await journal(job, "end")
"""
)


@asynccontextmanager
async def supervised(start: StartDaemon) -> AsyncIterator[list[Daemon]]:
    """Keep one daemon running: a new one for each that dies. Gives all of them, the last being the living one."""
    daemons: list[Daemon] = []

    async def supervise() -> None:
        while True:
            daemons.append(await start(HANDLERS, ready=False, lease_ttl=TTL))
            await aeventually(lambda: daemons[-1].process.poll() is not None, timeout=300)

    supervisor = asyncio.create_task(supervise())
    try:
        yield daemons
        assert not supervisor.done(), supervisor.exception()
    finally:
        supervisor.cancel()


@pytest.mark.fault(
    "Process", "a job kills every worker that runs it", "dead after three starts at most; 500 others pay nothing"
)
async def test_one_poison_job_among_500_innocent_ones_is_started_three_times_at_most_and_dies_alone(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    innocent = {"kind": "innocent", "payload": {"seconds": 0.01}}
    rows = await enqueue_many(connection, *[innocent] * 50, {"kind": "poison"}, *[innocent] * 450)
    poison = rows[50]["id"]
    async with supervised(daemon) as daemons:
        await aeventually(lambda: is_empty(connection), timeout=90)

    starts = await checker.starts(poison)
    assert 2 <= len(starts) <= 3
    assert len(daemons) == len(starts) + 1  # nothing else brought one down
    buried = await checker.history_of(poison)
    assert (buried["state"], buried["crashes"], buried["lease"]) == ("dead", 2, None)
    assert "it has brought down 2 workers" in buried["errors"][-1]["message"]
    counts = await connection.fetchrow(
        """select count(*) filter (where state = 'completed') as completed, sum(crashes) as crashes, max(attempt) as attempts
        from howdah.job_history where kind = 'innocent'"""
    )
    assert tuple(counts) == (500, 0, 1)
    figures.faults += len(starts)
    await checker.check(figures=figures)


@pytest.mark.fault("Process", "killed while a suspect waits for its slot", "no crash counted")
async def test_a_suspect_that_waits_for_a_slot_when_its_worker_dies_is_not_punished(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(HANDLERS, lease_ttl=TTL, queues="default:1")
    long = await enqueue(connection, "innocent", {"seconds": 60})
    await aeventually(lambda: checker.starts(long))
    suspect = await make_suspect(connection, "innocent")
    # Two beats: the worker has been told of the suspect, and has had the time to take it.
    for _ in range(2):
        beat = await connection.fetchval("select beat_at from howdah.workers")
        await aeventually(lambda beat=beat: has_beaten_since(connection, beat))
    worker.kill()
    await connection.execute("update howdah.workers set beat_at = 'epoch'")
    await aeventually(lambda: rescue(connection))
    row = await live(connection, suspect)
    assert row is not None
    assert (row["suspect"], row["crashes"], row["attempt"]) == (True, 0, 0)
    figures.jobs, figures.faults = 2, 1  # nobody is left to end them


@pytest.mark.fault("Process", "a suspect kills the worker right after another one ended", "who ended does not pay")
async def test_a_suspect_that_ended_is_written_down_before_the_next_one_may_bring_the_worker_down(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: object, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    innocent = await make_suspect(connection, "innocent", seconds=0.5)
    poison = await make_suspect(connection, "poison")
    async with supervised(daemon):
        await aeventually(lambda: checker.starts(innocent), timeout=20)
        # Somebody holds the innocent one's row, so its ack cannot be written for a while.
        async with connection.transaction():
            await connection.execute("select from howdah.jobs where id = $1 for update", innocent)
            other = await connect()  # type: ignore[operator]
            await aeventually(lambda: has_word(other, innocent, "end"))
            assert not await Checker(other).starts(poison)
        await aeventually(lambda: has_ended(connection, innocent, poison), timeout=30)
    assert (await checker.history_of(innocent))["crashes"] == 0
    assert (await checker.history_of(poison))["state"] == "dead"
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process",
    "killed before and after the start of jobs that may run at most once",
    "run if it was before, dead if after, never started twice",
)
async def test_an_at_most_once_job_is_dead_if_its_worker_died_after_its_start_and_is_run_if_before(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    begun = await enqueue(connection, "once", {"kill": True}, max_attempts=1)
    first = await daemon(HANDLERS, lease_ttl=TTL, ready=False)
    assert await first.wait() == -9

    # Another worker that died with a job in its hand, not started.
    waiting = await enqueue(connection, "once", max_attempts=1)
    gone = await add_worker(connection, name="gone:1", ttl=TTL, silent_for=60)
    assert [job.id for job in await claim(connection, gone, kinds=["once"])] == [waiting]

    second = await daemon(HANDLERS, lease_ttl=TTL)
    assert (await end_of(connection, waiting))["state"] == "completed"
    dead = await end_of(connection, begun)
    assert (dead["state"], dead["crashes"]) == ("dead", 1)
    assert "may run at most once" in dead["error"]
    assert len(await checker.starts(begun)) == 1
    assert len(await checker.starts(waiting)) == 1
    assert sum(line["jobs"] + line["buried"] for line in second.log_events("rescued")) == 2
    figures.faults += 2
    await checker.check(figures=figures)


async def make_suspect(connection: asyncpg.Connection, kind: str, **payload: float) -> int:
    """Enqueue a job that looks as if its worker had died with it once."""
    async with connection.transaction():
        job = await enqueue(connection, kind, payload)
        await connection.execute("update howdah.jobs set suspect = true where id = $1", job)
    return job


async def has_beaten_since(connection: asyncpg.Connection, beat: object) -> bool:
    return bool(await connection.fetchval("select bool_and(beat_at > $1) from howdah.workers", beat))


async def rescue(connection: asyncpg.Connection) -> bool:
    rows = await connection.fetch("select * from howdah.rescue()")
    return sum(row["rescued"] for row in rows) > 0


async def has_word(connection: asyncpg.Connection, job: int, event: str) -> bool:
    return bool(
        await connection.fetchval(
            "select exists (select from public.journal where job_id = $1 and event = $2)", job, event
        )
    )
