"""Clocks that are wrong, and clocks that are set while work goes on."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.checker import JOURNAL, Checker
from support.clocks import Clock, find_library
from support.daemon import Daemon
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import add_worker, enqueue, enqueue_many
from support.servers import connected, own_server

from howdah.database import Line
from howdah.evenness import Evenness
from howdah.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

    from howdah.embedded import EmbeddedPostgres

pytestmark = pytest.mark.skipif(find_library() is None, reason="libfaketime is not installed: ./dev faults installs it")

TTL = 2
MINUTES = 600.0
DAY = 86400.0
#: The longest that anything may stand still after a step of the server's clock: what hangs on a time is looked for so often, in seconds.
LINES, ALARMS = 30, 10


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
async def server(tmp_path: Path, clock: Clock) -> AsyncIterator[EmbeddedPostgres]:
    """A server that goes by the test's clock."""
    async with own_server(tmp_path / "server", binaries=clock.binaries()) as server:
        yield server


@pytest.mark.fault(
    "Time",
    "the server's clock is set forward, and beats look old",
    "nobody is rescued within a ttl; who does not beat then, is",
)
async def test_after_a_step_of_the_clock_nobody_is_rescued_before_he_has_had_time_to_beat(
    server: EmbeddedPostgres, clock: Clock
) -> None:
    line = Line("spare", server.url())
    evenness = Evenness()

    async def rescue() -> list[Any]:
        sent = time.monotonic()
        dead, _, now = await Store(line).rescue(100, evenness.expected(), evenness.seconds(), rescuer=0)
        steps.append(evenness.note(now, sent=sent, received=time.monotonic()))
        return dead

    async with connected(server) as connection:
        steps: list[float] = []
        assert await rescue() == []
        await aeventually(lambda: evenness.seconds() > 1)
        for step in (MINUTES, -MINUTES):
            worker = await add_worker(connection, ttl=1)
            clock.set(step)
            assert await rescue() == []
            assert abs(steps[-1]) > MINUTES - 1
            began = time.monotonic()
            [dead] = await aeventually(rescue)
            assert dead["worker"] == worker
            assert time.monotonic() - began > 0.9
    await line.close()


@pytest.mark.long
@pytest.mark.fault(
    "Time", "the server's clock is set ten minutes forward and back", "no living worker is taken for dead"
)
async def test_the_servers_clock_steps_and_no_living_worker_is_taken_for_dead(
    daemon: StartDaemon, server: EmbeddedPostgres, clock: Clock, figures: Figures
) -> None:
    async with connected(server) as connection:
        checker = await Checker(connection).install()
        workers = [await daemon(JOURNAL, url=server.url(), queues="default:10", lease_ttl=TTL) for _ in range(2)]
        await asyncio.sleep(2 * TTL)  # since then nobody is too young to rescue
        await enqueue_many(connection, *[{"kind": "innocent", "payload": {"seconds": 3 * TTL}}] * 15)
        await aeventually(lambda: starts(connection, 15))
        for ahead in (MINUTES, -MINUTES):
            clock.set(ahead)
            figures.faults += 1
            began = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent", priority=10))
            figures.recovered(time.monotonic() - began)
            await asyncio.sleep(TTL)  # every worker looks for dead ones meanwhile
        await aeventually(lambda: is_empty(connection), timeout=20)
        for worker in workers:
            assert not worker.log_events("rescued")
            assert not worker.log_events("lost lease")
            assert worker.log_events("the database's clock was set")
        assert await connection.fetchval("select max(attempt) + max(crashes) from howdah.job_history") == 1

        # One that is dead is found, although its beat lies ten minutes ahead; and nobody leads for ever.
        await enqueue_many(connection, *[{"kind": "innocent", "payload": {"seconds": 1}}] * 15)
        await aeventually(lambda: starts(connection, 32))
        workers[0].kill()
        clock.set(-2 * MINUTES)
        figures.faults += 1
        began = time.monotonic()
        await aeventually(lambda: is_empty(connection), timeout=30)
        figures.recovered(time.monotonic() - began)
        await checker.check(figures=figures, steady=False)
        await aeventually(lambda: workers[1].metric("howdah_leading"))
        assert await workers[1].stop() == 0


@pytest.mark.fault(
    "Time", "the server's clock was forty days ahead for a while", "what was written then ends like any other job"
)
async def test_jobs_from_a_time_when_the_clock_was_far_ahead_end_when_it_is_right_again(
    daemon: StartDaemon, server: EmbeddedPostgres, clock: Clock, figures: Figures
) -> None:
    async with connected(server) as connection:
        checker = await Checker(connection).install()
        clock.set(40 * DAY)
        figures.faults += 1
        await enqueue_many(connection, *[{"kind": "innocent"}, {"kind": "effect"}] * 20)
        cancelled = await enqueue(connection, "innocent", delay=timedelta(days=1))
        clock.set(0)
        began = time.monotonic()
        worker = await daemon(JOURNAL, url=server.url(), lease_ttl=TTL)
        await connection.execute("select howdah.cancel($1)", cancelled)
        await aeventually(lambda: is_empty(connection))
        figures.recovered(time.monotonic() - began)
        assert await connection.fetchval("select max(finished_at) < now() + interval '1 hour' from howdah.job_history")
        await checker.check(figures=figures, steady=False)
        assert await worker.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("step", [MINUTES, -MINUTES])
@pytest.mark.fault(
    "Time",
    "the server's clock is set under times, limits and schedules",
    "nothing comes twice, and nothing stands still for more than 30 s",
)
async def test_what_hangs_on_times_goes_on_after_a_step_of_the_servers_clock(
    daemon: StartDaemon, server: EmbeddedPostgres, clock: Clock, figures: Figures, step: float
) -> None:
    async with connected(server) as connection:
        checker = await Checker(connection).install()
        worker = await daemon(JOURNAL, url=server.url(), queues="default:10", lease_ttl=TTL)
        await connection.execute("select howdah.set_limit('slow', null, 10)")
        await connection.execute("select howdah.schedule('each second', '* * * * * *', 'innocent')")
        limited = [{"kind": "effect", "limits": ["slow"]}] * 60
        rows = await enqueue_many(connection, *limited)
        waiting = await enqueue(connection, "innocent", delay=timedelta(seconds=300))
        soon = await enqueue(connection, "innocent", delay=timedelta(seconds=4))
        await aeventually(lambda: starts(connection, 10))
        clock.set(step)
        figures.faults += 1
        began = time.monotonic()
        await aeventually(lambda: have_ended(connection, [row["id"] for row in rows]), timeout=LINES + 10)
        figures.recovered(time.monotonic() - began)
        if step > 0:
            # Their time has come, by the one clock that decides.
            for job in (soon, waiting):
                await end_of(connection, job, timeout=ALARMS + 2)
            now = datetime.now(UTC) + timedelta(seconds=step)
            await aeventually(lambda: fired_since(connection, now), timeout=ALARMS + 2)
        else:
            await connection.execute("select howdah.cancel(id) from unnest($1::bigint[]) id", [waiting, soon])
        # What had been fired before the step is not fired again, however often the clock comes by.
        clock.set(0)
        figures.faults += 1
        await enqueue_many(connection, *limited)
        await aeventually(lambda: limited_ended(connection, 120), timeout=LINES + 10)
        await connection.execute("select howdah.unschedule('each second')")
        await aeventually(lambda: is_empty(connection), timeout=LINES)
        slots = [row[0] for row in await connection.fetch(SLOTS)]
        assert len(slots) == len(set(slots))
        await checker.check(figures=figures, steady=False)
        assert not worker.log_events("rescued")
        assert await worker.stop() == 0


@pytest.mark.long
@pytest.mark.fault(
    "Time",
    "the clocks on Berlin's walls are moved, and the server's is set over it",
    "each slot comes once, as the rules say",
)
async def test_a_schedule_in_berlin_fires_once_on_the_days_on_which_its_clocks_are_moved(
    daemon: StartDaemon, server: EmbeddedPostgres, clock: Clock, figures: Figures
) -> None:
    async with connected(server) as connection:
        clock.set(until("2027-03-28T00:59:56"))  # four seconds before two o'clock becomes three
        figures.faults += 1
        checker = await Checker(connection).install()
        await connection.execute(
            "select howdah.schedule('nightly', '30 2 * * *', 'innocent', time_zone => 'Europe/Berlin', missed => 'skip')"
        )
        await connection.execute(
            "select howdah.schedule('half', '*/30 * * * *', 'innocent', time_zone => 'Europe/Berlin', missed => 'skip')"
        )
        worker = await daemon(JOURNAL, url=server.url(), lease_ttl=TTL)
        await aeventually(lambda: slots_of(connection, "nightly", "2027-03-28T01:00:00Z"), timeout=ALARMS + 5)
        await aeventually(lambda: slots_of(connection, "half", "2027-03-28T01:00:00Z"))
        for moment, slot in (
            ("2027-10-31T00:29:52", "00:30"),
            ("2027-10-31T01:29:52", "01:30"),
            ("2027-10-31T22:59:52", "23:00"),
        ):
            clock.set(until(moment))
            figures.faults += 1
            await aeventually(
                lambda slot=slot: slots_of(connection, "half", f"2027-10-31T{slot}:00Z"), timeout=ALARMS + 10
            )
        # Half past two comes twice in that night, and is slept through once.
        assert await slots_of(connection, "nightly", "2027-03-28T01:00:00Z", "2027-10-31T00:30:00Z")
        slots = await connection.fetch("select headers -> 'schedule' from howdah.job_status")
        assert len(slots) == len({(row[0]["name"], row[0]["slot"]) for row in slots})
        await aeventually(lambda: is_empty(connection))
        await checker.check(figures=figures, steady=False)
        assert await worker.stop() == 0


def until(moment: str) -> float:
    """Give how far a clock must be ahead to show this moment, in UTC."""
    return datetime.fromisoformat(f"{moment}+00:00").timestamp() - time.time()


async def slots_of(connection: asyncpg.Connection, schedule: str, *slots: str) -> bool:
    """Tell whether a schedule has fired these slots, and no others if they are more than one."""
    rows = await connection.fetch(
        "select headers -> 'schedule' ->> 'slot' as slot from howdah.job_status where headers -> 'schedule' ->> 'name' = $1",
        schedule,
    )
    found = [row["slot"] for row in rows]
    return sorted(found) == sorted(slots) if len(slots) > 1 else slots[0] in found


#: The slots of the jobs that the schedule made.
SLOTS = "select headers -> 'schedule' ->> 'slot' from howdah.job_history where headers ? 'schedule'"

FIRED = """
@handler("fired", schedule=Schedule("*/2 * * * * *"))
async def fired(job: Job) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
"""


@pytest.mark.long
@pytest.mark.fault(
    "Time", "workers' clocks ten minutes off, and set while they work", "no start too early, no rescue, each slot once"
)
async def test_a_workers_clock_decides_nothing(
    database: Database, connection: asyncpg.Connection, tmp_path: Path, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    clocks = [Clock(tmp_path / f"clock {n}") for n in range(3)]
    workers: list[Daemon] = []
    try:
        for clock, ahead in zip(clocks, (MINUTES, -MINUTES, 0.0), strict=True):
            clock.set(ahead)
            workers.append(started(tmp_path, len(workers), database, clock))
            figures.faults += ahead != 0
        for worker in workers:
            await worker.ready()
        await asyncio.sleep(1.5 * TTL)  # since then nobody is too young to rescue
        await enqueue_many(
            connection,
            *[{"kind": "innocent", "payload": {"seconds": 4}}] * 20,
            *[{"kind": "innocent", "delay": f"{n / 10} seconds"} for n in range(20)],
            *[{"kind": "effect"}] * 20,
        )
        for ahead in (-MINUTES, MINUTES, 40 * DAY):
            for clock in clocks:
                clock.set(ahead)
                figures.faults += 1
            await asyncio.sleep(TTL)  # every worker beats and looks around meanwhile
        await connection.execute("select howdah.pause_schedule('fired')")
        await aeventually(lambda: is_empty(connection))
        slots = [row[0] for row in await connection.fetch(SLOTS)]
        assert len(slots) == len(set(slots)) > 1
        assert await connection.fetchval(
            f"select bool_and(created_at >= slot::timestamptz) from (select created_at, {SLOTS[7:]}) f(created_at, slot)"
        )
        await checker.check(figures=figures)
        for worker in workers:
            assert not worker.log_events("rescued")
            assert not worker.log_events("taken for dead, entering again")
            assert await worker.stop() == 0
    finally:
        for worker in workers:
            worker.reap()


def started(folder: Path, n: int, database: Database, clock: Clock) -> Daemon:
    """Start a worker that goes by a clock of its own."""
    handlers = "from howdah import Schedule\n" + JOURNAL + FIRED
    return Daemon(
        folder / f"worker {n}", url=database.url, handlers=handlers,
        environment={"HOWDAH_QUEUES": "default:10", "HOWDAH_LEASE_TTL": str(TTL)} | clock.environment,
    )  # fmt: skip


async def starts(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) >= $1 from public.journal where event = 'start'", count))


async def have_ended(connection: asyncpg.Connection, jobs: list[int]) -> bool:
    return bool(
        await connection.fetchval("select count(*) = $2 from howdah.job_history where id = any ($1)", jobs, len(jobs))
    )


async def limited_ended(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) = $1 from howdah.job_history where kind = 'effect'", count))


async def fired_since(connection: asyncpg.Connection, moment: Any) -> bool:
    return bool(await connection.fetchval("select exists (select from howdah.schedules where last_slot > $1)", moment))
