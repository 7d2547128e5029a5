"""Schedules in the database: each slot is dealt with once, whoever reads it when, and what the policies make of the missed ones."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.jobs import ack, add_worker, claim_one, completed, refused, register
from support.logins import login

from howdah.database import Line
from howdah.metrics import Metrics
from howdah.queries import SQL
from howdah.scheduler import BATCH, Scheduler
from howdah.schedules import Timetable, plan
from howdah.store import Store
from howdah.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg
    from conftest import Connect
    from support.cluster import Database

    from howdah.store import DueSchedule

HOURLY = "0 * * * *"


@pytest.fixture
async def scheduler(database: Database) -> AsyncIterator[Callable[[], Scheduler]]:
    """Make a worker's scheduler with a connection of its own, as often as it is called."""
    async with AsyncExitStack() as stack:

        def make(url: str = database.url) -> Scheduler:
            line = Line("spare", url)
            stack.push_async_callback(line.close)
            return Scheduler(store=Store(line), vitals=Vitals(leads=True), metrics=Metrics(), on_done=lambda: None)

        yield make


async def schedule(connection: asyncpg.Connection, name: str = "nightly", cron: str = HOURLY, **given: Any) -> bool:
    arguments = {"name": name, "cron": cron, "kind": "work", **given}
    places = ", ".join(f"{key} => ${place}" for place, key in enumerate(arguments, start=1))
    return bool(await connection.fetchval(f"select howdah.schedule({places})", *arguments.values()))


async def set_back(connection: asyncpg.Connection, hours: float, name: str = "nightly") -> None:
    """Let a schedule have been dealt with for the last time so many hours before the last full hour, half an hour early."""
    await connection.execute(
        """update howdah.schedules set next_at = null,
        done_until = date_trunc('hour', clock_timestamp(), 'UTC') - $2 * interval '1 hour' - interval '30 minutes' where name = $1""",
        name,
        hours,
    )


async def row(connection: asyncpg.Connection, name: str = "nightly") -> asyncpg.Record:
    return await connection.fetchrow("select * from howdah.schedules where name = $1", name)


async def fired_slots(connection: asyncpg.Connection, name: str = "nightly") -> list[str]:
    """The slots of all jobs of a schedule, in the order of the jobs."""
    rows = await connection.fetch(
        "select headers -> 'schedule' ->> 'slot' as slot from howdah.job_status where headers -> 'schedule' ->> 'name' = $1 order by id",
        name,
    )
    return [row["slot"] for row in rows]


async def test_a_new_schedule_has_its_next_slot_computed_and_fires_nothing(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    assert await schedule(connection, time_zone="Europe/Berlin", cron="30 2 * * *")
    before = await row(connection)
    await scheduler()._fire_all()
    after = await row(connection)
    assert after["next_at"] == Timetable("30 2 * * *", "Europe/Berlin").first_after(before["done_until"])
    assert after["done_until"] == before["done_until"]
    assert await fired_slots(connection) == []


async def test_of_many_who_read_a_slot_at_once_one_fires_it(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    names = [f"s{number}" for number in range(20)]
    for name in names:
        await schedule(connection, name, missed="all")
        await set_back(connection, 5, name)
    crowd = [scheduler() for _ in range(5)]
    for _ in range(3):
        await asyncio.gather(*(one._fire_all() for one in crowd))
    for name in names:
        slots = await fired_slots(connection, name)
        assert len(slots) == 6
        assert len(set(slots)) == 6
        assert (await row(connection, name))["fired"] == 6


async def test_a_worker_that_does_not_lead_fires_what_the_leader_leaves_lying(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    follower = scheduler()
    follower._vitals.leads = False
    for name in ("fresh", "lying"):
        await schedule(connection, name)
        await set_back(connection, 0, name)
    # The leader has two seconds: one schedule's slot came a second ago.
    await connection.execute(
        "update howdah.schedules set next_at = clock_timestamp() - interval '1 second' where name = 'fresh'"
    )
    await follower._fire_all()
    assert (await row(connection, "fresh"))["fired"] == 0
    assert (await row(connection, "lying"))["fired"] == 1


async def test_who_is_late_with_what_it_has_read_fires_nothing(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection)
    await set_back(connection, 0)
    first, second = scheduler()._store, scheduler()._store
    [mine], [theirs] = await first.due_schedules(0, BATCH), await second.due_schedules(0, BATCH)
    assert mine.version == theirs.version
    assert (await fire(first, mine)) is not None
    assert (await fire(second, theirs)) is None
    assert len(await fired_slots(connection)) == 1


async def fire(store: Store, schedule: DueSchedule) -> Any:
    told = plan(Timetable(schedule.cron, schedule.time_zone), schedule.missed, schedule.done_until, schedule.now)
    return await store.fire_schedule(schedule, told, [0.0] * len(told.slots))


CHANGES = [
    "select howdah.schedule('nightly', '0 * * * *', 'other')",
    "select howdah.pause_schedule('nightly'), howdah.resume_schedule('nightly')",
    "select howdah.pause_schedule('nightly')",
    "select howdah.unschedule('nightly')",
]


async def test_what_was_changed_after_it_was_read_does_not_fire_as_it_was(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    store = scheduler()._store
    for change in CHANGES:
        await connection.execute("delete from howdah.schedules")
        await schedule(connection)
        await set_back(connection, 0)
        [read] = await store.due_schedules(0, BATCH)
        await connection.execute(change)
        assert (await fire(store, read)) is None, change
    assert await fired_slots(connection) == []


async def test_a_worker_that_dies_before_its_commit_has_fired_nothing_and_holds_nobody_up(
    connection: asyncpg.Connection, connect: Connect, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection)
    await set_back(connection, 0)
    other = scheduler()
    [read] = await other._store.due_schedules(0, BATCH)
    told = plan(Timetable(HOURLY), "one", read.done_until, read.now)
    dying = await connect()
    await dying.execute("begin")
    [done] = await dying.fetch(
        SQL["fire_schedule"], read.name, read.version, told.slots, [0.0], 0, told.until, told.next_at
    )
    assert done["made"] == 1
    assert not await asyncio.wait_for(other._fire_all(), 5)  # it is locked: not waited for, and said so
    dying.terminate()
    await aeventually(other._fire_all)
    assert len(await fired_slots(connection)) == 1


@pytest.mark.parametrize(("missed", "made", "given_up"), [("skip", 0, 4), ("one", 1, 3), ("all", 4, 0)])
async def test_missed_slots_are_made_up_for_as_the_policy_says(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler], missed: str, made: int, given_up: int
) -> None:
    # Slots every six hours, the last three hours ago: none is in time, whatever the hour now.
    hour = (datetime.now(UTC) - timedelta(hours=3)).hour
    await schedule(connection, cron=f"0 {','.join(str((hour + 6 * n) % 24) for n in range(4))} * * *", missed=missed)
    await connection.execute(
        "update howdah.schedules set next_at = null, done_until = date_trunc('hour', clock_timestamp(), 'UTC') - interval '22 hours'"
    )
    await scheduler()._fire_all()
    slots = await fired_slots(connection)
    after = await row(connection)
    assert (len(slots), after["fired"], after["missed_slots"]) == (made, made, given_up)
    assert slots == sorted(slots)
    assert after["next_at"] > datetime.now(UTC)
    # All of them are dealt with: who counts anew from there finds nothing.
    await connection.execute("update howdah.schedules set next_at = null")
    await scheduler()._fire_all()
    assert await fired_slots(connection) == slots
    assert (await row(connection))["next_at"] == after["next_at"]


async def test_no_second_job_while_one_lives_if_overlap_says_so(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection, missed="all", overlap="skip")
    await set_back(connection, 2)
    await scheduler()._fire_all()
    assert ((await row(connection))["fired"], (await row(connection))["overlapped"]) == (1, 2)
    await set_back(connection, 0)
    await scheduler()._fire_all()
    assert ((await row(connection))["fired"], (await row(connection))["overlapped"]) == (1, 3)
    await ack(connection, completed(await claim_one(connection, await add_worker(connection))))
    await set_back(connection, 0)
    await scheduler()._fire_all()
    assert ((await row(connection))["fired"], (await row(connection))["overlapped"]) == (2, 3)


async def test_a_job_that_was_made_again_by_hand_is_minded_too_and_not_waited_for_while_it_ends(
    connection: asyncpg.Connection, connect: Connect, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection, overlap="skip")
    await set_back(connection, 0)
    await scheduler()._fire_all()
    worker = await add_worker(connection)
    first = await claim_one(connection, worker)
    await ack(connection, completed(first))
    await connection.execute("select howdah.retry($1)", first.id)
    again, ending = await claim_one(connection, worker), await connect()
    await ending.execute("begin")
    await ack(ending, completed(again))
    await set_back(connection, 0)
    assert await asyncio.wait_for(scheduler()._fire_all(), 5)
    assert ((await row(connection))["fired"], (await row(connection))["overlapped"]) == (1, 1)
    await ending.execute("rollback")


async def test_overlap_is_minded_from_the_first_job_on_after_it_was_allowed(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    for overlap, made in (("allow", 1), ("skip", 1), ("allow", 2)):
        await schedule(connection, overlap=overlap)
        await set_back(connection, 0)
        await scheduler()._fire_all()
        assert len(await fired_slots(connection)) == made


async def test_a_job_tells_its_schedule_and_slot_and_has_what_was_asked_for(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    options = {"queue": "slow", "priority": 7, "max_attempts": 5, "timeout": timedelta(minutes=2), "subject": "tidy"}
    await schedule(connection, payload={"days": 3}, jitter=timedelta(hours=1), headers={"a": 1}, **options)
    await set_back(connection, 0)
    hour = await connection.fetchval("select date_trunc('hour', clock_timestamp(), 'UTC')")
    await scheduler()._fire_all()
    job = await connection.fetchrow("select * from howdah.jobs")
    assert {name: job[name] for name in options} == options
    assert job["payload"] == {"days": 3}
    assert job["headers"] == {"a": 1, "schedule": {"name": "nightly", "slot": hour.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    assert timedelta() < job["due_at"] - job["created_at"] <= timedelta(hours=1)
    after = await row(connection)
    assert (after["last_slot"], after["last_job"]) == (hour, job["id"])


async def test_what_the_database_refuses_stays_due_until_it_is_mended(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection)
    await set_back(connection, 0)
    before = await row(connection)
    await register(connection, {"name": "work", "fields": {"days": {"types": ["number"], "required": True}}})
    one = scheduler()
    assert await one._fire_all()
    after = await row(connection)
    assert "field 'days' is missing" in after["problem"]
    assert (after["done_until"], after["fired"]) == (before["done_until"], 0)
    assert await one._store.due_schedules(0, BATCH) == []  # looked at again in a minute
    with refused("JB003", naming="days"):
        await schedule(connection)
    await schedule(connection, payload={"days": 1})
    await one._fire_all()
    after = await row(connection)
    assert (after["problem"], after["fired"]) == (None, 1)


async def test_what_no_worker_can_read_is_said_and_holds_up_no_other(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    for name, cron in (("a", "0 3 30 2 *"), ("b", HOURLY), ("c", "1 2 3 4 MON#9")):
        await schedule(connection, name, cron)
        await set_back(connection, 0, name)
    await connection.execute("update howdah.schedules set time_zone = 'Mars/Olympus' where name = 'c'")
    await scheduler()._fire_all()
    assert "'0 3 30 2 *' is no cron expression" in (await row(connection, "a"))["problem"]
    assert "'Mars/Olympus' is no time zone" in (await row(connection, "c"))["problem"]
    assert (await row(connection, "b"))["fired"] == 1


async def test_a_paused_schedule_does_not_fire_and_begins_anew_when_it_is_resumed(
    connection: asyncpg.Connection, scheduler: Callable[[], Scheduler]
) -> None:
    await schedule(connection, missed="all")
    assert await connection.fetchval("select howdah.pause_schedule('nightly', 'ada')")
    assert not await connection.fetchval("select howdah.pause_schedule('nightly', 'bob')")
    assert (await row(connection))["paused_by"] == "ada"
    await set_back(connection, 3)
    await scheduler()._fire_all()
    assert await connection.fetchval("select howdah.resume_schedule('nightly')")
    assert not await connection.fetchval("select howdah.resume_schedule('nightly')")
    await scheduler()._fire_all()
    assert await fired_slots(connection) == []
    assert (await row(connection))["next_at"] > datetime.now(UTC)


async def test_upkeep_tells_when_the_next_schedule_wants_to_be_looked_at(connection: asyncpg.Connection) -> None:
    async def told(patience: float | None) -> float | None:
        return (await connection.fetchrow(SQL["make_ready"], 10, patience))["next_schedule"]

    assert await told(0) is None
    await schedule(connection)
    assert await told(None) is None
    assert -1 < (await told(0) or 0) <= 0  # it has no next_at yet
    assert 1 < (await told(2) or 0) <= 2
    await connection.execute("update howdah.schedules set next_at = clock_timestamp() + interval '90 s'")
    assert 89 < (await told(0) or 0) <= 90
    await connection.execute("update howdah.schedules set problem_at = clock_timestamp() + interval '40 s'")
    assert 99 < (await told(0) or 0) <= 100
    await connection.execute("select howdah.pause_schedule('nightly')")
    assert await told(0) is None


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "JB002", "name is ''"),
    ({"cron": "0 3 * *"}, "JB002", "cron is '0 3 * *'"),
    ({"cron": None}, "JB002", "cron is NULL"),
    ({"time_zone": "Berlin"}, "JB002", "time_zone is 'Berlin'"),
    ({"time_zone": None}, "JB002", "time_zone is NULL"),
    ({"missed": "some"}, "JB002", "missed is 'some'"),
    ({"overlap": "no"}, "JB002", "overlap is 'no'"),
    ({"jitter": timedelta(days=-1)}, "JB002", "jitter is -1 days"),
    ({"kind": ""}, "JB002", "kind is ''"),
    ({"payload": [1]}, "JB001", "not array"),
    ({"priority": 11}, "JB002", "priority is 11"),
    ({"headers": [1]}, "JB002", "headers must be"),
]


async def test_bad_input_is_refused_and_named(connection: asyncpg.Connection) -> None:
    for wrong, sqlstate, naming in WRONG:
        with refused(sqlstate, naming=naming):
            await schedule(connection, **wrong)
    assert await connection.fetchval("select count(*) from howdah.schedules") == 0


async def test_what_is_not_there_is_refused(connection: asyncpg.Connection) -> None:
    for call in ("pause_schedule", "resume_schedule", "unschedule"):
        with refused("JB007", naming="there is no schedule 'nightly'"):
            await connection.execute(f"select howdah.{call}('nightly')")
    await connection.execute("update howdah.settings set strict_kinds = true")
    with refused("JB004", naming="'work' was never registered"):
        await schedule(connection)


def kind(cron: str | None = HOURLY, name: str = "tidy", **given: Any) -> dict[str, Any]:
    return {"name": name, "fields": {}, "schedule": {"cron": cron, **given} if cron else None}


async def declare(connection: asyncpg.Connection, *kinds: dict[str, Any], revision: int = 1) -> list[str]:
    taken: list[str] = (await connection.fetchrow(SQL["register"], list(kinds), revision))["taken"]
    return taken


async def test_a_declared_schedule_follows_the_newest_code(connection: asyncpg.Connection) -> None:
    assert await declare(connection, kind(payload={"a": 1}, jitter=5), kind(None, "other"), revision=2) == []
    first = await row(connection, "tidy")
    assert (first["kind"], first["declared"], first["cron"], first["payload"]) == ("tidy", True, HOURLY, {"a": 1})
    assert first["jitter"] == timedelta(seconds=5)
    await connection.execute("update howdah.schedules set next_at = done_until + interval '1 hour'")
    first = await row(connection, "tidy")
    # The same again, as every start does; then older code, with another one and with none: nothing changes.
    await declare(connection, kind(payload={"a": 1}, jitter=5), revision=2)
    await declare(connection, kind("0 4 * * *"), revision=1)
    await declare(connection, kind(None), revision=1)
    assert await row(connection, "tidy") == first
    # Newer code with another policy goes on from where it was; with another expression it begins anew.
    await declare(connection, kind(missed="all"), revision=3)
    second = await row(connection, "tidy")
    assert (second["missed"], second["next_at"], second["done_until"]) == ("all", first["next_at"], first["done_until"])
    await declare(connection, kind("0 4 * * *"), revision=4)
    third = await row(connection, "tidy")
    assert third["next_at"] is None
    assert third["done_until"] > first["done_until"]
    await declare(connection, kind(None), revision=5)
    assert await row(connection, "tidy") is None


async def test_a_pause_of_a_declared_schedule_survives_restarts_and_deploys(connection: asyncpg.Connection) -> None:
    await declare(connection, kind())
    await connection.execute("select howdah.pause_schedule('tidy', 'ada')")
    await declare(connection, kind())
    await declare(connection, kind("0 4 * * *"), revision=2)
    assert (await row(connection, "tidy"))["paused_by"] == "ada"


async def test_one_made_by_hand_and_one_declared_never_share_a_name(connection: asyncpg.Connection) -> None:
    await schedule(connection, "tidy", "0 5 * * *")
    assert await declare(connection, kind(), kind(name="other")) == ["tidy"]
    mine = await row(connection, "tidy")
    assert (mine["declared"], mine["cron"], mine["kind"]) == (False, "0 5 * * *", "work")
    await declare(connection, kind(None), revision=2)
    assert await row(connection, "tidy") == mine
    with refused("JB007", naming="schedule 'other' is declared by a handler"):
        await schedule(connection, "other")


async def test_a_declared_schedule_can_be_removed_once_nobody_has_its_handler(connection: asyncpg.Connection) -> None:
    await declare(connection, kind())
    worker = await add_worker(connection, kinds=["tidy"])
    with refused("JB007", naming="is declared by a handler that a living worker has"):
        await connection.execute("select howdah.unschedule('tidy')")
    await connection.execute("delete from howdah.workers where id = $1", worker)
    await connection.execute("select howdah.unschedule('tidy')")
    assert await row(connection, "tidy") is None


async def test_a_worker_s_login_fires_and_a_reader_s_sees_no_secret(
    connection: asyncpg.Connection, database: Database, scheduler: Callable[..., Scheduler]
) -> None:
    await register(connection, {"name": "work", "fields": {}, "secret": ["token"]})
    await schedule(connection, payload={"token": "hunter2", "days": 1})
    await set_back(connection, 0)
    async with login(database, "howdah_worker") as worker:
        await scheduler(worker.url)._fire_all()
    assert len(await fired_slots(connection)) == 1
    async with login(database, "howdah_reader") as reader:
        line = Line("ask", reader.url)
        [seen] = await line.fetch(SQL["list_schedules"], None)
        await line.close()
    assert seen["payload"] == {"token": "***", "days": 1}
