"""Schedules with real workers: each slot fires exactly once, also when the worker that leads is killed among them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import count_ends
from support.jobs import enqueue

from howdah import Job, handler
from howdah import testing as kit
from howdah.registry import registry

if TYPE_CHECKING:
    from datetime import datetime

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

pytestmark = pytest.mark.faults

HANDLERS = """
from howdah import Schedule

@handler("tick", schedule=Schedule("* * * * * *", missed="all", payload={"declared": True}))
async def tick(job: Job) -> None: ...
"""
#: So many schedules, with so many missed slots each.
CROWD, SLOTS = 60, 40


async def fired(connection: asyncpg.Connection) -> Counter[tuple[str, datetime]]:
    """How often each slot of each schedule became a job."""
    rows = await connection.fetch(
        "select headers -> 'schedule' ->> 'name' as name, (headers -> 'schedule' ->> 'slot')::timestamptz as slot from howdah.job_status"
    )
    return Counter((row["name"], row["slot"]) for row in rows)


async def leader(connection: asyncpg.Connection, daemons: list[Daemon]) -> Daemon | None:
    worker = await connection.fetchval("select worker from howdah.leader where until > clock_timestamp()")
    return next((daemon for daemon in daemons if daemon.worker == worker), None)


@pytest.mark.fault("Process", "the leader is killed while it fires schedules", "each slot fires exactly once")
async def test_three_workers_fire_each_slot_exactly_once_though_the_one_that_leads_is_killed_among_them(
    connection: asyncpg.Connection, daemon: StartDaemon, figures: Figures
) -> None:
    daemons = list(await asyncio.gather(*(daemon(HANDLERS, lease_ttl=2) for _ in range(3))))
    first = await aeventually(lambda: leader(connection, daemons))
    assert first is not None
    await aeventually(lambda: fired(connection))  # the declared one fires every second
    # Sixty schedules that are all due now, each with forty slots to make up for.
    began = await connection.fetchval(
        """with made as (
          insert into howdah.schedules (name, kind, cron, missed, done_until)
          select format('s%s', n), 'tick', '*/5 * * * *', 'all', date_trunc('hour', clock_timestamp(), 'UTC') - $2 * interval '5 minutes'
          from generate_series(1, $1) n returning done_until)
        select min(m.done_until) from made m""",
        CROWD,
        SLOTS,
    )
    await connection.execute("select pg_notify('howdah_control', 'due')")
    await aeventually(
        lambda: connection.fetchval("select count(*) > 5 from howdah.schedules where fired > 0"), interval=0
    )
    first.kill()
    left = await connection.fetchval("select count(*) from howdah.schedules where not declared and fired = 0")
    assert 0 < left < CROWD, "the leader was killed too early or too late for this to prove anything"
    daemons.remove(first)

    await aeventually(lambda: connection.fetchval("select bool_and(fired > 0) from howdah.schedules"))
    second = await aeventually(lambda: leader(connection, daemons))
    assert second is not first
    moment = await connection.fetchval("select clock_timestamp()")
    await aeventually(
        lambda: connection.fetchval("select done_until > $1 from howdah.schedules where declared", moment)
    )
    await connection.execute("select howdah.pause_schedule(name) from howdah.schedules")

    made = await fired(connection)
    assert [slot for slot, times in made.items() if times != 1] == []
    # Every second since the declared one was made, and every five minutes of each of the others, without a gap.
    rows = await connection.fetch("select name, created_at, done_until, next_at, fired, declared from howdah.schedules")
    for row in rows:
        step = timedelta(seconds=1) if row["declared"] else timedelta(minutes=5)
        since = row["created_at"].replace(microsecond=0) if row["declared"] else began
        expected = {since + step * (n + 1) for n in range(int((row["done_until"] - since) / step))}
        assert {slot for name, slot in made if name == row["name"]} == expected
        assert row["fired"] == len(expected) >= (2 if row["declared"] else SLOTS)
    await aeventually(lambda: connection.fetchval("select howdah.is_idle()"))
    assert await connection.fetchval("select bool_and(state = 'completed') from howdah.job_history")
    figures.faults += 1
    await count_ends(connection, figures)


async def test_a_schedule_that_is_made_is_heard_of_at_once_and_its_job_runs_at_its_slot(
    connection: asyncpg.Connection, daemon: StartDaemon
) -> None:
    worker = await daemon("@handler('tick')\nasync def tick(job: Job) -> None: ...\n")
    await aeventually(lambda: connection.fetchval("select worker = $1 from howdah.leader", worker.worker))
    soon = await connection.fetchval("select clock_timestamp() + interval '2 seconds'")
    cron = f"{soon.second} {soon.minute} {soon.hour} * * *"
    await connection.execute("select howdah.schedule('soon', $1, 'tick', jitter => '1 ms')", cron)
    slot = soon.replace(microsecond=0)
    await aeventually(lambda: connection.fetchval("select next_at = $1 from howdah.schedules", slot), timeout=1.5)
    job = await aeventually(lambda: connection.fetchrow("select * from howdah.job_history"))
    assert job is not None
    assert job["headers"] == {"schedule": {"name": "soon", "slot": f"{slot:%Y-%m-%dT%H:%M:%S}Z"}}
    # Not before its slot, and well before any poll would have found it.
    assert timedelta() <= job["created_at"] - slot < timedelta(seconds=1)
    assert await worker.metric('howdah_schedule_slots_total{outcome="fired"}') == 1
    await aeventually(lambda: worker.metric('howdah_schedules{state="active"}'))


async def test_who_leaves_when_nothing_is_left_fires_no_schedule(
    connection: asyncpg.Connection, daemon: StartDaemon, database: Database
) -> None:
    cron_host = await daemon(HANDLERS, "--until-empty", ready=False)
    assert await cron_host.wait() == 0

    @handler("tock", schedule="* * * * * *")
    async def tock(job: Job) -> None: ...

    try:
        await enqueue(connection, "tock")
        run = await kit.run_until_empty(database, [tock])
    finally:
        registry.take("tock")
    assert len(run.completed) == 1
    rows = await connection.fetch("select name, next_at, overdue from howdah.schedule_status order by name")
    # Nobody has so much as computed when they are due.
    assert [(row["name"], row["next_at"]) for row in rows] == [("tick", None), ("tock", None)]
    assert all(row["overdue"] for row in rows)
    assert await connection.fetchval("select count(*) from howdah.job_status") == 1
