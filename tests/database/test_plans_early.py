"""Plans that a session made while the tables were empty, and keeps when they have filled up: until somebody takes statistics, a minute or more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.jobs import add_worker

from howdah.queries import SQL

pytestmark = pytest.mark.costs

if TYPE_CHECKING:
    from conftest import Connect

TABLES = (
    "jobs",
    "dependencies",
    "batches",
    "batch_ends",
    "waiters",
    "signals",
    "steps",
    "events",
    "holds",
    "buckets",
    "openings",
    "workers",
)
#: A session keeps a generic plan from the sixth run on.
RUNS = 6
MANY = 100_000
#: Compares everything that waits with what lives, and is called now and then: the most buffers for each that waits.
SETTLE_BOUND = 1
#: How many jobs a statement is told of, and the most buffers that it may touch for each. A plan gone wrong reads a table of thousands of pages.
TOLD, BOUND = 20, 150

IDS, LEASES, ONE, LEASE, NEW = "{ids}", "{leases}", "{one}", "{lease}", "{new}"
OUTCOMES = "array_fill('{}'::text, array[20])"
ERRORS = "array_fill('[]'::jsonb, array[20])"
NOTHING, SECONDS = "array_fill(null::jsonb, array[20])", "array_fill(0.01::float8, array[20])"
LINE = "'{default}', '{-1}', '{0}', '{10}', null"
KINDS, QUEUES = "'{work,other}'", "'{default}'"

STATEMENTS: dict[str, tuple[str, ...]] = {
    "claim": ("1", "77", KINDS, QUEUES, "'{20}'", *LINE.split(", ")),
    "claim_limited": ("1", "77", KINDS, QUEUES, "'{20}'"),
    "claim_suspect": ("1", "77", KINDS, QUEUES, "true", "null", "null"),
    "find_behind": (KINDS, QUEUES, "20", "'{default,default}'", "'{5,10}'", "'{900000,900000}'"),
    "ack_completed": (IDS, LEASES, NOTHING, SECONDS, SECONDS, "true"),
    "ack completed": (
        IDS,
        LEASES,
        OUTCOMES.format("completed"),
        NOTHING,
        NOTHING,
        SECONDS,
        SECONDS,
        SECONDS,
        NOTHING,
        "true",
    ),
    "ack dead": (IDS, LEASES, OUTCOMES.format("dead"), NOTHING, ERRORS, SECONDS, SECONDS, SECONDS, NOTHING, "true"),
    "ack retried": (
        IDS,
        LEASES,
        OUTCOMES.format("retried"),
        NOTHING,
        ERRORS,
        SECONDS,
        SECONDS,
        SECONDS,
        NOTHING,
        "true",
    ),
    "ack released": (
        IDS,
        LEASES,
        OUTCOMES.format("released"),
        NOTHING,
        NOTHING,
        SECONDS,
        "array_fill(null::float8, array[20])",
        SECONDS,
        NOTHING,
        "true",
    ),
    "ack_fate": (IDS, LEASES, "array_fill(true, array[20])", "true"),
    "start": (IDS, LEASES, SECONDS),
    "report": (IDS, LEASES, ERRORS),
    "apply_signals": (),
    "settle": ("20",),
    "make_ready": ("20", "60"),
    "forsake": ("1", IDS, LEASES),
    "steps": (ONE, LEASE),
    "keep_step": (ONE, LEASE, "'one'", "'[]'"),
    "cancel": (ONE, "'me'", "'why'"),
    "cancel_jobs": (IDS, "'me'", "'why'"),
    "beat": ("1",),
    "watch": (IDS, "'me'", "3600"),
    "enqueue_many": (NEW,),
    "create_batch": (),
}


def statement(name: str) -> tuple[str, tuple[str, ...]]:
    """Give the text and the arguments of one of them."""
    arguments = STATEMENTS[name]
    if name.startswith("ack "):
        return "select * from howdah.ack($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", arguments
    if name == "enqueue_many":
        return "select * from howdah.enqueue_many($1)", arguments
    if name == "create_batch":
        return "select howdah.create_batch('work')", arguments
    return SQL[name], arguments


async def populate(connection: asyncpg.Connection, count: int) -> None:
    """Add so many jobs of every sort: running ones, of which each has a dependent, a batch and somebody who waits, and so on."""
    await connection.execute(f"""
        create table if not exists public.told (id bigint, lease bigint, batch bigint);
        delete from public.told;
        with head as (
          insert into howdah.jobs (kind, due_at) select 'work', 'infinity' from generate_series(1, {count} / 10) returning id),
        numbered as (select id, row_number() over (order by id) - 1 as at from head),
        opened as (insert into howdah.batches select id from head),
        running as (
          insert into howdah.jobs (kind, queue, priority, lease, leased_by, claimed_at, batch, max_attempts, attempt)
          select 'work', 'busy', n % 11, n, 1, clock_timestamp() + interval '1 minute', b.id, 9, 1 from generate_series(1, {count}) n join numbered b on b.at = n % ({count} / 10)
          returning id, lease, batch),
        waiting as (
          insert into howdah.jobs (kind, due_at) select 'work', 'infinity' from generate_series(1, {count}) returning id),
        pairs as (
          select w.id, r.id as on from (select id, row_number() over (order by id) as n from waiting) w
          join (select id, row_number() over (order by id) as n from running) r using (n)),
        depend as (insert into howdah.dependencies (job_id, depends_on, required) select id, "on", true from pairs),
        listen as (insert into howdah.waiters (job_id, waiter, until) select id, 'me', now() + interval '1 hour' from running),
        stepped as (insert into howdah.steps (job_id, name, result) select id, 'one', '{{}}' from running)
        insert into public.told select id, lease, batch from running;
        insert into howdah.signals (job_id, signal) select id, 'cancel' from public.told order by id desc limit 10;
        insert into howdah.jobs (kind, priority) select 'work', n % 11 from generate_series(1, {count}) n;
        insert into howdah.jobs (kind, suspect) select 'work', true from generate_series(1, {count} / 100) n;
        insert into howdah.jobs (kind, due_at) select 'work', now() - interval '1 minute' from generate_series(1, {count}) n;
        insert into howdah.jobs (kind, unique_key) select 'other', gen_random_uuid()::text from generate_series(1, {count}) n;
        insert into howdah.jobs (kind, limits, gate) select 'work', array['a'], 'a' from generate_series(1, {count}) n;
        insert into howdah.openings (key) values ('a');
        insert into howdah.events (due_at, kind, key, payload) select now() - interval '1 minute', 'work', n::text, '{{}}' from generate_series(1, {count} / 100) n;
    """)


@pytest.mark.parametrize("few", [10, 40], ids=["tables of a page", "tables of some pages"])
async def test_plans_made_while_the_tables_were_empty_do_no_harm_when_they_have_filled_up(
    connection: asyncpg.Connection, connect: Connect, few: int
) -> None:
    for table in TABLES:
        await connection.execute(f"alter table howdah.{table} set (autovacuum_enabled = off, vacuum_truncate = off)")
    await add_worker(connection)
    await connection.execute("select howdah.set_limit('a', concurrency => 1000000)")
    await populate(connection, few)
    await connection.execute("".join(f"delete from howdah.{table};" for table in TABLES if table != "workers"))
    for table in TABLES:
        await connection.execute(f"vacuum analyze howdah.{table}")
    await populate(connection, few)
    told = await those_told(connection)
    sessions = {}
    for name in STATEMENTS:
        text, arguments = statement(name)
        session = sessions[name] = await connect()
        await session.execute("set search_path = pg_catalog, howdah, pg_temp")
        await session.execute(f"prepare this as {text}")
        for _ in range(RUNS):
            await session.execute(f"begin; {call(arguments, told)}; rollback")
    await populate(connection, MANY)
    told = await those_told(connection)
    wrong = []
    for name, session in sessions.items():
        bound = MANY * SETTLE_BOUND if name == "settle" else TOLD * BOUND
        try:
            buffers = await touched(session, call(STATEMENTS[name], told))
            if buffers > bound:
                # Once more: statistics of another table, or of the catalog, may have had its plans made anew, which reads the catalog.
                buffers = await touched(session, call(STATEMENTS[name], told))
        except asyncpg.QueryCanceledError as error:
            wrong.append(f"{name}: {error}")
        else:
            if buffers > bound:
                wrong.append(f"{name}: {buffers:,} buffers")
    assert not wrong, "\n".join(wrong)


async def touched(session: asyncpg.Connection, execution: str) -> int:
    """Run what was prepared, take it back, and count the buffers that it touched."""
    await session.execute("begin; set local statement_timeout = '20s'")
    try:
        plan = json.loads(await session.fetchval(f"explain (analyze, buffers, format json) {execution}"))[0]["Plan"]
    finally:
        await session.execute("rollback")
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def those_told(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Give the running jobs that statements are told of."""
    return await connection.fetch("select id, lease, batch from public.told order by id limit $1", TOLD)


def call(arguments: tuple[str, ...], told: list[asyncpg.Record]) -> str:
    """Write an execution of what was prepared."""
    new = [
        {"kind": "work", "depends_on": [row["id"]], "unique_key": f"new {row['id']}", "batch": row["batch"]}
        for row in told
    ]
    words = {
        IDS: f"array{[row['id'] for row in told]}",
        LEASES: f"array{[row['lease'] for row in told]}",
        ONE: str(told[0]["id"]),
        LEASE: str(told[0]["lease"]),
        NEW: f"$${json.dumps(new)}$$",
    }
    return (
        f"execute this({', '.join(words.get(argument, argument) for argument in arguments)})"
        if arguments
        else "execute this"
    )
