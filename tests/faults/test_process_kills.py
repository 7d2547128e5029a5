"""Workers killed again and again, with jobs in hand: everything ends, and no job dies that never started."""

from __future__ import annotations

import asyncio
import random
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
SETTINGS = {"queues": "default:40", "concurrency": 4, "lease_ttl": TTL}


@pytest.mark.fault(
    "Process", "one of two workers is killed every other second", "all ends, and none dies that never started"
)
async def test_jobs_that_never_started_do_not_die_of_workers_that_are_killed_again_and_again(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await kill_again_and_again(daemon, connection, figures, workers=2, kills=3, jobs=300)


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
    chance = random.Random(11)  # noqa: S311 - the same order in every run
    kinds = ("innocent", "innocent", "effect", "once")
    batch = [
        {"kind": kinds[n % 4], "payload": {"seconds": 0.02}, **({"max_attempts": 1} if n % 4 == 3 else {})}
        for n in range(jobs)
    ]
    async with alive(daemon, workers) as lives:
        for _ in range(kills):
            await enqueue_many(connection, *(batch.pop() for _ in range(jobs // kills)))
            victim = chance.choice(lives)
            # One that has much in hand; the two seconds are the rhythm of the kills.
            rhythm = asyncio.create_task(asyncio.sleep(2))
            await aeventually(lambda victim=victim: has_in_hand(connection, victim, 20), 20)
            await rhythm
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
    assert unstarted > 10 * kills / 3
    dead = await connection.fetch(
        """select id, kind, errors -> -1 ->> 'type' as error, crashes from howdah.job_history h where state <> 'completed'
        and not exists (select from public.journal j where j.job_id = h.id)"""
    )
    assert not dead
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


async def has_in_hand(connection: asyncpg.Connection, life: Life, count: int) -> bool:
    """Tell whether the worker of a place holds so many jobs."""
    started = life.now.log_events("started")
    held: int = await connection.fetchval(
        "select count(*) from howdah.jobs where leased_by = $1", started[0]["worker"] if started else 0
    )
    return held >= count
