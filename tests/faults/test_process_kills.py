"""Workers killed again and again, with jobs in hand: everything ends, and no job dies that never started."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue_many

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
@handler("once", max_attempts=1)
async def once(job: Job) -> None:
    await quick_journal(job, "start")
    await asyncio.sleep(0.02)
    await quick_journal(job, "end")
"""
)

#: Most of what such a worker holds waits for one of few places.
SETTINGS = {"queues": "default:20", "concurrency": 3, "lease_ttl": TTL}


@pytest.mark.fault(
    "Process", "one of two workers is killed every other second", "all ends, and none dies that never started"
)
async def test_jobs_that_never_started_do_not_die_of_workers_that_are_killed_again_and_again(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await kill_again_and_again(daemon, connection, figures, workers=2, kills=3, jobs=240)


@pytest.mark.long
@pytest.mark.fault(
    "Process",
    "one of three workers is killed every two seconds, for a minute",
    "all ends, and none dies that never started",
)
async def test_jobs_that_never_started_do_not_die_in_a_minute_of_kills(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await kill_again_and_again(daemon, connection, figures, workers=3, kills=30, jobs=4000)


async def kill_again_and_again(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures, *, workers: int, kills: int, jobs: int
) -> None:
    checker = await Checker(connection).install()
    kinds = ("innocent", "innocent", "effect", "once")
    batch = [
        {"kind": kinds[n % 4], "payload": {"seconds": 0.05}, **({"max_attempts": 1} if n % 4 == 3 else {})}
        for n in range(jobs)
    ]
    async with alive(daemon, workers) as lives:
        for _ in range(kills):
            await asyncio.sleep(2)  # the rhythm of the kills
            await enqueue_many(connection, *(batch.pop() for _ in range(jobs // kills)))
            victim = await aeventually(lambda: who_has_in_hand(connection, lives, 12), 20)
            victim.now.kill()
            figures.faults += 1
        killed = time.monotonic()
        await aeventually(lambda: is_empty(connection), 90)
    figures.recovered(time.monotonic() - killed)

    # What this is about has happened: they had jobs in hand that never started.
    unstarted: int = await connection.fetchval(
        """select count(*) from public.audit a where event = 'given back'
        and not exists (select from public.journal j where j.job_id = a.job_id and j.at < a.at)"""
    )
    assert unstarted > 5 * kills
    assert not await connection.fetch(
        "select id from howdah.job_history where state <> 'completed' and started_at is null"
    )
    assert not await connection.fetchval("select max(crashes) > 2 or max(attempt) > 1 from howdah.job_history")
    await checker.check(figures=figures)


class Life:
    """A place for a worker: a new one stands in it as soon as the last has gone."""

    def __init__(self, start: StartDaemon) -> None:
        self._start = start
        self.now: Daemon

    async def run(self) -> None:
        while True:
            self.now = await self._start(HANDLERS, ready=False, **SETTINGS)
            await aeventually(lambda: self.now.process.poll() is not None, timeout=600)


@asynccontextmanager
async def alive(start: StartDaemon, count: int) -> AsyncIterator[list[Life]]:
    """Keep so many workers alive."""
    lives = [Life(start) for _ in range(count)]
    tasks = [asyncio.create_task(life.run()) for life in lives]
    try:
        yield lives
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()


async def who_has_in_hand(connection: asyncpg.Connection, lives: list[Life], count: int) -> Life | None:
    """Give a place whose worker holds so many jobs."""
    rows = await connection.fetch(
        "select leased_by from howdah.jobs where leased_by is not null group by 1 having count(*) >= $1", count
    )
    full = {row["leased_by"] for row in rows}
    return next((life for life in lives if full & {line["worker"] for line in life.now.log_events("started")}), None)
