"""Whoever may create functions and enqueue gets nobody else's rights: no name of ours is looked up where others can put one."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from support.attacks import plant, plant_tables, taken
from support.cluster import connect_to, new_database
from support.commands import cli
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import (
    ack,
    add_dead_worker,
    add_worker,
    claim_one,
    completed,
    dead,
    enqueue,
    enqueue_coalesced,
    enqueue_many,
    register,
)  # fmt: skip
from support.logins import login, name_of

from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

APP = Path(__file__).parents[2] / "sql" / "app"

#: What every function that has its owner's rights is called with, by the argument's name; {…} are jobs of the test.
VALUES: dict[str, list[str]] = {
    "job_id": ["{ready}", "{held}", "{ended}", "{dead}", "{limited}", "{waiting}", "0"],
    "lease": ["{lease}"],
    "kind": ["'work'", "'known'"],
    "payload": ["'{{\"token\": \"t\"}}'"],
    "jobs": ["""'[{{"kind": "known", "unique_key": "k2", "delay": "1 s", "limits": ["api"]}}, {{"kind": "work", "depends_on": [{ready}]}}]'"""],
    "payloads": ["array['{{}}'::jsonb, '{{\"a\": 1}}']"],
    "kinds": ["""'[{{"name": "other", "fields": {{"a": {{"types": ["string"], "required": true}}}}, "secret": ["a"]}}]'""", "array['work', 'known']"],
    "schedules": ["""'[{{"name": "s2", "kind": "work", "cron": "0 3 * * *", "time_zone": "UTC"}}]'"""],
    "queue": ["'default'"], "queues": ["array['default']"], "worker": ["'somebody:1'"], "waiter": ["'me'"], "name": ["'api'", "'nightly'"],
    "cron": ["'0 3 * * *'"], "time_zone": ["'UTC'"], "subject": ["'s'"], "unique_key": ["'u'"], "fifo_key": ["'f'"], "limits": ["array['api']"],
    "batch": ["null", "{batch}"], "depends_on": ["array[{ready}]"], "run_at": ["now() + interval '1 hour'"], "delay": ["null"], "days": ["1"],
    "count": ["3"], "priority": ["3"], "max_attempts": ["2"], "concurrency": ["2"], "rate": ["1.5"], "burst": ["2"], "error": ["'went wrong'"],
    "on_conflict": ["'replace'"], "on_failed_dependency": ["'cancel'"], "ttl": ["interval '1 minute'"], "missed": ["'one'"], "overlap": ["'skip'"],
    "expires_at": ["now() + interval '1 day'"], "headers": ["'{{}}'"], "revision": ["99"], "seconds": ["1"], "ahead": ["14"],
}  # fmt: skip
#: Others, by type.
BY_TYPE = {"bigint": "1", "integer": "1", "text": "'x'", "jsonb": "'{{}}'", "uuid": "gen_random_uuid()", "boolean": "true", "double precision": "1",
           "interval": "interval '1 s'", "timestamp with time zone": "now()", "text[]": "array['x']", "uuid[]": "array[gen_random_uuid()]",
           "bigint[]": "array[1::bigint]", "jsonb[]": "array['{{}}'::jsonb]"}  # fmt: skip


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    """A database with both schemas, in which everybody may create in `public`, as up to PostgreSQL 14."""
    async with new_database() as database:
        connection = await asyncpg.connect(database.url)
        await migrate(connection, source="app", folder=APP)
        await connection.execute("grant create on schema public to public")
        await connection.close()
        yield database


async def scene(connection: asyncpg.Connection) -> dict[str, Any]:
    """Make jobs in every state, so that every part of the functions has something to do."""
    await register(
        connection,
        {"name": "known", "secret": ["token"], "fields": {"token": {"types": ["string"], "required": False}}},
    )
    await connection.execute(
        "select howdah.set_limit('api', concurrency => 1, rate => 5), howdah.set_limit('chat:*', rate => 5), howdah.set_limit('kind:known', concurrency => 9)"
    )
    await connection.execute("select howdah.schedule('nightly', '0 3 * * *', 'work')")
    worker = await add_worker(connection, kinds=("work", "known"))
    await connection.execute("update howdah.workers set sleeps = true")
    await add_dead_worker(connection)
    ended, failed, held = [await enqueue(connection, "work", subject="s") for _ in range(3)]
    first, second, third = [await claim_one(connection, worker, count=1) for _ in range(3)]
    await ack(connection, completed(first), dead(second))
    ready = await enqueue(connection, "work", {"token": "t"}, subject="s", unique_key="u")
    limited = await enqueue(connection, "work", limits=["api"], fifo_key="f")
    batch = await connection.fetchval("select howdah.create_batch('work')")
    await enqueue(connection, "work", batch=batch)
    waiting = await enqueue(connection, "work", depends_on=[ready, held])
    await connection.execute("select howdah.watch($1, 'me')", ready)
    assert (first.id, second.id, third.id) == (ended, failed, held)
    return {
        "ready": ready,
        "held": held,
        "lease": third.lease,
        "ended": ended,
        "dead": failed,
        "limited": limited,
        "waiting": waiting,
        "batch": batch,
    }


def calls(function: asyncpg.Record, jobs: dict[str, Any]) -> list[str]:
    """Give calls of a function: with nothing but nulls, and with each of its arguments' values."""
    pairs = list(zip(function["names"], function["types"], strict=True))
    variants = max([len(VALUES.get(name, ())) for name, _ in pairs], default=1) or 1
    made = [", ".join(f"null::{kind}" for _, kind in pairs)]
    for turn in range(variants):
        values = []
        for name, kind in pairs:
            known = VALUES.get(name) or [BY_TYPE.get(kind, f"null::{kind}")]
            value = known[turn % len(known)]
            values.append(f"({value})::{kind}")
        made.append(", ".join(values).format(**jobs))
    return [f"select * from {function['name']}({arguments})" for arguments in made]


@pytest.mark.fault(
    "Security", "names planted in public and pg_temp, search_path set, before every security definer function", "nothing of it runs with the owner's rights"
)  # fmt: skip
async def test_no_function_with_its_owners_rights_looks_a_name_up_where_an_attacker_put_one(
    database: Database, figures: Figures
) -> None:
    owner = await connect_to(database)
    await owner.execute("set search_path = pg_catalog, pg_temp")
    jobs = await scene(owner)
    async with login(database, "howdah_producer", "app_handlers") as mine, AsyncExitStack() as stack:
        stack.callback(owner.terminate)
        attacker = await connect_to(mine)
        stack.callback(attacker.terminate)
        await attacker.execute("select set_config('search_path', 'pg_catalog, public', false)")
        planted = await plant(attacker, "public")
        planted_tables = await plant_tables(attacker, "public") + await plant_tables(attacker, "pg_temp")
        assert planted > 1000, planted
        assert planted_tables > 60, planted_tables
        functions = await owner.fetch(
            """select p.oid::regprocedure::text as signature, format('%I.%I', n.nspname, p.proname) as name,
              coalesce(p.proargnames[:p.pronargs], '{}') as names, array(select t::regtype::text from unnest(p.proargtypes) t) as types
            from pg_proc p join pg_namespace n on n.oid = p.pronamespace
            where n.nspname in ('howdah', 'app') and p.prosecdef and p.prorettype <> 'trigger'::regtype order by 1"""
        )
        assert len(functions) > 40
        unpinned = await owner.fetch(
            """select p.oid::regprocedure::text from pg_proc p where p.prosecdef and p.pronamespace in (select oid from pg_namespace where nspname in ('howdah', 'app'))
            and not exists (select from unnest(p.proconfig) c where c ~ '^search_path=pg_catalog, (howdah, )?pg_temp$')"""
        )
        assert unpinned == []
        # More than a producer may: whatever runs with its owner's rights, by whoever can be brought to call it.
        for row in functions:
            await owner.execute(f"grant execute on function {row['signature']} to {name_of(mine)}")
        await owner.execute(
            f"grant usage on schema app to {name_of(mine)}; grant insert, update, delete, select on all tables in schema app to {name_of(mine)}"
        )
        answered: set[str] = set()
        for path in ("public, pg_temp, pg_catalog", "pg_temp, public, howdah, pg_catalog"):
            for row in functions:
                for call in calls(row, jobs):
                    await attacker.execute(f"begin; set local search_path = {path}; set local statement_timeout = '5s'")
                    try:
                        await attacker.execute(call)
                        answered.add(row["signature"])
                    except asyncpg.PostgresError:
                        pass  # refused, as it should be
                    await attacker.execute("rollback")
                    figures.faults += 1
            # Triggers that have their owner's rights run by whatever is written to their tables.
            for statement in TRIGGERS:
                await attacker.execute(f"begin; set local search_path = {path}")
                with suppress(asyncpg.PostgresError):  # the attacker's own statement may stumble over what is planted
                    await attacker.execute(statement)
                await attacker.execute("rollback")
                figures.faults += 1
        assert await taken(owner) == []
        never = {row["signature"] for row in functions} - answered
        assert len(never) <= len(functions) // 3, f"too few were carried out to say anything: {sorted(never)}"


TRIGGERS = (
    "insert into app.posts (image_url) values ('https://example.org/a.png')",
    "with post as (insert into app.posts default values returning id) insert into app.post_ratings (post_id) select id from post",
    "with course as (insert into app.courses (title) values ('c') returning id) insert into app.documents (course_id, filename, storage_url) select id, 'f', 'u' from course",
    "delete from app.courses",
    "delete from app.posts",
)


@pytest.mark.fault(
    "Security",
    "better matching functions planted in public, while workers, commands and migrations run",
    "none is ever called",
)
async def test_workers_commands_and_migrations_call_nothing_that_an_attacker_has_put_into_public(
    daemon: StartDaemon, database: Database, figures: Figures
) -> None:
    connection = await connect_to(database)
    async with (
        login(database, "howdah_producer") as mine,
        login(database, "howdah_worker") as worker,
        login(database, "howdah_admin") as admin,
    ):
        attacker = await connect_to(mine)
        figures.faults = await plant(attacker, "public")
        await attacker.close()
        # For the test itself, which is no part of the engine.
        await connection.execute("set search_path = pg_catalog, pg_temp")
        await scene(connection)
        running = await daemon(HANDLERS, url=worker.url, lease_ttl=2, pool_database_url=mine.url)
        jobs = await enqueue_many(connection, *JOBS)
        await enqueue_coalesced(connection, "work", {"how": ""}, "key")
        await connection.execute("select howdah.schedule('soon', '* * * * * *', 'work', payload => '{\"how\": \"\"}')")
        figures.jobs = len(jobs)
        await end_of(connection, jobs[0]["id"])
        await aeventually(lambda: few_are_left(connection), timeout=20)
        for words in COMMANDS:
            said = await cli(*words, url=replace(database, url=admin.url))
            assert said.code in {0, 1}, (words, said.err)
        superuser = urlsplit(database.url).geturl()
        for words in (("migrate",), ("migrate", "--app", str(APP)), ("check",)):
            await cli(*words, url=superuser)
        script = await cli("migrate", "--sql", url=superuser)
        fresh = await asyncpg.connect(superuser)
        await fresh.execute(re.sub(r"^(begin|commit);$", "", script.out, flags=re.MULTILINE))
        await fresh.close()
        assert running.process.poll() is None
        await running.stop()
        assert await taken(connection) == []
    connection.terminate()


async def few_are_left(connection: asyncpg.Connection) -> bool:
    """What waits for jobs of the scene, which no worker of the test has, stays."""
    return bool(await connection.fetchval("select count(*) = 0 from howdah.jobs where payload ? 'how'"))


HANDLERS = """
@handler("work", max_attempts=2, backoff=lambda attempt: 0.1)
async def work(job: Job) -> Any:
    await job.report({"begun": True})
    match job.payload.get("how", ""):
        case "step": return await job.step("one", lambda: 1)
        case "chain": await job.enqueue("work", {"how": "", "n": 2})
        case "fail": raise ValueError("no")
        case "snooze" if job.attempt == 1 and not Path(f"snoozed{job.id}").exists():
            Path(f"snoozed{job.id}").touch()
            return Snooze(0.1)
        case "long": await asyncio.sleep(1.5)
    return 1

@handler("known", transaction=True, secret=("token",))
async def known(job: Job, connection: asyncpg.Connection) -> int:
    return 1
"""
JOBS: tuple[dict[str, Any], ...] = (
    *({"kind": "work", "payload": {"how": how}} for how in ("", "step", "chain", "fail", "snooze", "long")),
    {"kind": "work", "payload": {"how": ""}, "max_attempts": 1, "limits": ["api", "chat:1"], "fifo_key": "f"},
    {"kind": "work", "payload": {"how": ""}, "delay": "0.3 s", "unique_key": "later"},
    {"kind": "known", "payload": {"how": "", "token": "t0p"}},
)
COMMANDS = (
    ("jobs",), ("jobs", "--state", "dead"), ("show", "2"), ("explain", "4"), ("jobs", "--group-by", "error"), ("stats",), ("doctor",), ("top", "--once"), ("limit", "list"),
    ("schedule", "list"), ("pause", "other"), ("resume", "other"), ("retry", "2"), ("cancel", "4"), ("wait", "2", "--timeout", "1"), ("enqueue", "work"),
)  # fmt: skip
