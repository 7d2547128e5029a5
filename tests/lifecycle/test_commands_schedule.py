"""`howdah schedule`: what it shows and does, for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from support.commands import cli
from support.daemon import howdah, write_handlers
from support.jobs import add_worker

from howdah.config import load_config
from howdah.doctor.examine import examine

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from support.cluster import Database


async def test_a_schedule_is_made_shown_paused_changed_and_removed(
    connection: asyncpg.Connection, database: Database
) -> None:
    arguments = ("nightly", "30 2 * * *", "tidy_up", '{"days": 3}', "--time-zone", "Europe/Berlin")
    said = await cli(
        "schedule", "add", *arguments, "--overlap", "skip", "--jitter", "5m", "--queue", "slow", url=database
    )
    assert said.code == 0
    assert said.err == "howdah: kind 'tidy_up' was never registered\n"
    assert said.out.splitlines()[0] == "schedule nightly is made; its next slots:"
    assert len(said.out.splitlines()) == 6
    row = await connection.fetchrow("select * from howdah.schedules")
    assert (row["payload"], row["options"], row["overlap"], row["jitter"]) == (
        {"days": 3},
        {"queue": "slow"},
        "skip",
        timedelta(minutes=5),
    )

    [shown] = (await cli("schedule", "list", "--json", url=database)).objects
    assert (shown["name"], shown["declared"], shown["jitter"], shown["fired"]) == ("nightly", False, 300.0, 0)
    slots = [datetime.fromisoformat(slot) for slot in shown["next"]]
    assert len(slots) == 5
    assert {slot.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M") for slot in slots} <= {"02:30", "03:00"}
    previews = (await cli("schedule", "next", "nightly", "--json", url=database)).objects
    assert [datetime.fromisoformat(one["utc"]) for one in previews] == slots
    assert [datetime.fromisoformat(one["local"]) for one in previews] == slots

    assert (
        await cli("schedule", "pause", "nightly", "--by", "ada", url=database)
    ).out == "schedule nightly is paused\n"
    assert "was paused already" in (await cli("schedule", "pause", "nightly", url=database)).out
    assert "paused" in (await cli("schedule", "list", url=database)).out
    assert "is paused" in (await cli("schedule", "next", "nightly", url=database)).err
    assert (await cli("schedule", "resume", "nightly", url=database)).out == "schedule nightly is resumed\n"
    assert "was not paused" in (await cli("schedule", "resume", "nightly", url=database)).out
    changed = await cli("schedule", "add", "nightly", "0 4 * * *", "tidy_up", url=database)
    assert changed.out.startswith("schedule nightly is changed; its next slots:\n")
    assert "04:00:00 UTC" in changed.out
    assert (await cli("schedule", "remove", "nightly", url=database)).out == "schedule nightly is removed\n"
    assert (await cli("schedule", "list", url=database)).err == "no schedules yet\n"


async def test_the_next_slots_of_an_expression_need_no_database() -> None:
    said = await cli("schedule", "next", "30 2 * * *", "--time-zone", "America/New_York", "--count", "400", "--json")
    assert said.code == 0
    slots = [(datetime.fromisoformat(one["local"]), datetime.fromisoformat(one["utc"])) for one in said.objects]
    assert len(slots) == 400
    assert all(local == utc and utc.utcoffset() == timedelta() for local, utc in slots)
    # Four hundred days have a day on which half past two does not exist.
    assert {f"{local:%H:%M}" for local, _ in slots} == {"02:30", "03:00"}
    plain = await cli("schedule", "next", "0 12 * * *", "--count", "1")
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    noon += timedelta(days=1) if noon <= datetime.now(UTC) else timedelta()
    assert plain.out == f"{noon:%a %Y-%m-%d} 12:00:00 UTC   {noon:%Y-%m-%d} 12:00:00Z\n"


async def test_register_keeps_declared_schedules_and_says_which_one_gives_way_to_one_made_by_hand(
    connection: asyncpg.Connection, database: Database, tmp_path: Path
) -> None:
    write_handlers(
        tmp_path,
        """
        @handler("tidy_up", schedule="0 3 * * *")
        async def tidy_up(job: Job) -> None: ...
        @handler("report", schedule="0 4 * * *")
        async def report(job: Job) -> None: ...
        """,
    )
    await connection.execute("select howdah.schedule('report', '0 5 * * *', 'other')")
    done = howdah("register", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
    assert (done.returncode, done.stdout) == (0, "registered report, tidy_up\n")
    assert "schedule report was made by hand, so the one that its handler declares is not used" in done.stderr
    rows = await connection.fetch("select name, cron, declared from howdah.schedules order by name")
    assert [tuple(row) for row in rows] == [("report", "0 5 * * *", False), ("tidy_up", "0 3 * * *", True)]
    refused = await cli("schedule", "add", "tidy_up", "0 9 * * *", "tidy_up", url=database)
    assert refused.code == 1
    assert "schedule 'tidy_up' is declared by a handler" in refused.complaint


async def test_the_doctor_names_every_schedule_that_does_not_do_what_it_should(
    connection: asyncpg.Connection, database: Database
) -> None:
    async def lines() -> list[str]:
        found = [one async for one in examine(load_config(database_url=database.url, http_port=1), database.url)]
        return [f"{one.level}: {one.says} → {one.do}" for one in found if one.topic == "schedules"]

    assert await lines() == ["ok: none → "]
    await add_worker(connection, kinds=["work"])
    for name, kind in (("fine", "work"), ("late", "work"), ("stray", "nobodys"), ("broken", "work"), ("held", "work")):
        await connection.execute("select howdah.schedule($1, '0 3 * * *', $2)", name, kind)
    await connection.execute("update howdah.schedules set next_at = clock_timestamp() + interval '3 h'")
    await connection.execute(
        "update howdah.schedules set next_at = clock_timestamp() - interval '3 h' where name = 'late'"
    )
    await connection.execute(
        "update howdah.schedules set problem = 'it is odd', problem_at = now() where name = 'broken'"
    )
    await connection.execute("select howdah.pause_schedule('held', 'ada')")
    found = "\n".join(await lines())
    assert "fine" not in found
    assert "fail: late should have fired 3 h ago and nobody did → howdah run" in found
    assert "warn: stray makes jobs of kind nobodys, which no living worker has a handler for" in found
    assert "fail: broken cannot fire: it is odd → howdah schedule add broken … mends it" in found
    assert "by ada → howdah schedule resume held" in found
    await connection.execute("delete from howdah.schedules where name <> 'fine'")
    assert await lines() == ["ok: 1 schedule, the next slot in 3 h → "]
