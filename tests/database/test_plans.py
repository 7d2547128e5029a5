"""The explain guard: what the daemon's statements read does not grow with the table, whatever the statistics say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import pytest
from support.jobs import Line, add_worker, claim, enqueue_many

pytestmark = pytest.mark.costs

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect

# Buffers for 100 jobs, twice what was measured on PostgreSQL 15 and 18 (684 and 1,226). A wrong plan reads the queue:
# 277,000 at a million rows by the primary key, 45,000 by a sequential scan.
CLAIM_BOUND = 1_400
PROMOTE_BOUND = 2_500
ACK_BOUND = 4_000
# For 100 jobs of each lane, 100 that are not due and 20 pages.
COUNT_BOUND = 2_500
# For one row, or none (measured: at most 21; a first call on a connection reads up to 48 of the catalog besides).
SMALL_BOUND = 80

CLAIM = (
    "select * from howdah.claim_ready(1, 5, '{work,other}', '{default}', '{100}', '{default}', '{-1}', '{0}', '{10}')"
)
STATEMENTS = {
    # statement, the index that it must use, how many buffers it may touch
    "a look": (CLAIM, "jobs_claim", CLAIM_BOUND),
    "a claim from marks in two queues": (
        """select * from howdah.claim_ready(1, 5, '{work,other}', '{default,quiet}', '{100,100}',
        '{default,default,quiet}', '{5,7,10}', '{500,100,0}', '{5,7,10}')""",
        "jobs_claim",
        CLAIM_BOUND,
    ),
    "a claim of a suspect": (
        "select * from howdah.claim_suspect(1, 5, '{work,other}', '{default,quiet}')",
        "jobs_suspect",
        SMALL_BOUND,
    ),
    "a promotion": ("select * from howdah.promote(100)", "jobs_due", PROMOTE_BOUND),
    "a beat": ("select * from howdah.worker_beat(1)", None, SMALL_BOUND),
    "a count of what lies where": ("select * from howdah.depth(100, 20)", "jobs_claim", COUNT_BOUND),
    "an enqueue": ("select * from howdah.enqueue('work')", None, SMALL_BOUND),
    "an enqueue with a key": ("select * from howdah.enqueue('work', unique_key => 'k')", None, SMALL_BOUND),
    "an enqueue for later": ("select * from howdah.enqueue('work', delay => '1 day')", "jobs_due", SMALL_BOUND),
}
# A long-lived connection comes to the generic plan after five calls, if the planner thinks it no worse.
MODES = ("force_custom_plan", "force_generic_plan")


@dataclass(frozen=True)
class Cost:
    """What one run of a statement read, its functions' statements included."""

    buffers: int
    rows: float
    sequential_scans: int
    index_scans: int


async def measure(connect: Connect, statement: str, index: str | None, mode: str, role: str | None = None) -> Cost:
    """Run a statement with its plans made, roll back, and tell what it read of howdah.jobs."""
    connection = await connect()
    if role:
        await connection.execute(f"set role {role}")
    await connection.execute(f"set plan_cache_mode = {mode}")
    await connection.execute(f"begin; {statement}; rollback")
    scans = """select pg_stat_get_xact_numscans('howdah.jobs'::regclass) as sequential,
        coalesce(pg_stat_get_xact_numscans(to_regclass('howdah.' || $1::text)), 0) as index"""
    transaction = connection.transaction()
    await transaction.start()
    before = await connection.fetchrow(scans, index)
    plan = json.loads(await connection.fetchval(f"explain (analyze, buffers, format json) {statement}"))[0]["Plan"]
    after = await connection.fetchrow(scans, index)
    await transaction.rollback()
    await connection.close()
    return Cost(
        buffers=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        rows=plan["Actual Rows"],
        sequential_scans=after["sequential"] - before["sequential"],
        index_scans=after["index"] - before["index"],
    )


async def check(connect: Connect, situation: str, *, looks_over: int = 0) -> None:
    """Measure every statement in both modes, as the owner and as a mere worker, to whom row-level security applies.

    A look may read one buffer more for each of `looks_over` jobs in hand.
    """
    wrong = []
    for role, mode in product((None, "howdah_worker"), MODES):
        for name, (statement, index, bound) in STATEMENTS.items():
            allowed = bound + (looks_over if index == "jobs_claim" else 0)
            # Every measure leaves rolled-back row versions on the pages that the next one reads. They go as the pages are
            # read, unless a passing snapshot (autovacuum's, on another table) still could see them: then once more.
            for _ in range(10):
                cost = await measure(connect, statement, index, mode, role)
                if cost.buffers <= allowed:
                    break
                await (await connect()).execute("vacuum howdah.jobs")
            if cost.buffers > allowed or (index and (cost.sequential_scans or not cost.index_scans)):
                wrong.append(f"{name} ({role or 'owner'}, {mode}, at most {allowed} by {index}): {cost}")
    assert not wrong, f"{situation}:\n" + "\n".join(wrong)


async def fill(connection: asyncpg.Connection, count: int) -> None:
    """Insert jobs of all priorities, half of them scheduled, a tenth of those due."""
    await connection.execute(
        f"""insert into howdah.jobs (kind, payload, priority, due_at, ready_at)
        select 'work', jsonb_build_object('n', n), n % 11,
          case when n % 2 = 0 then now() + (n - {count} / 10) * interval '1 second' end, now()
        from generate_series(1, {count}) n"""
    )


async def fill_running(connection: asyncpg.Connection, count: int) -> None:
    await connection.execute(
        """insert into howdah.jobs (kind, payload, priority, lease, leased_by, claimed_at)
        select 'work', jsonb_build_object('n', n), n % 11, n, 1, clock_timestamp() + interval '1 minute'
        from generate_series(1, $1::int) n""",
        count,
    )


async def keep_statistics(connection: asyncpg.Connection, *tables: str) -> None:
    """Let nobody but the test take statistics."""
    for table in tables:
        await connection.execute(f"alter table howdah.{table} set (autovacuum_enabled = off)")


async def forget_statistics(connection: asyncpg.Connection) -> None:
    await connection.execute("delete from pg_statistic where starelid = 'howdah.jobs'::regclass")
    await connection.execute("update pg_class set reltuples = -1 where oid = 'howdah.jobs'::regclass")


async def test_what_a_statement_reads_does_not_grow_with_the_table(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    await keep_statistics(connection, "jobs")
    await add_worker(connection)
    await check(connect, "empty, no statistics")
    await connection.execute("analyze howdah.jobs")
    await check(connect, "empty, fresh statistics")

    await fill(connection, 1_000)
    await check(connect, "1,000 jobs, statistics of an empty table")
    await forget_statistics(connection)
    await check(connect, "1,000 jobs, no statistics")
    await connection.execute("analyze howdah.jobs")
    await check(connect, "1,000 jobs, fresh statistics")

    await fill(connection, 1_000_000)
    await check(connect, "1,000,000 jobs, statistics of 1,000")
    await forget_statistics(connection)
    await check(connect, "1,000,000 jobs, no statistics")
    await connection.execute("analyze howdah.jobs")
    await check(connect, "1,000,000 jobs, fresh statistics")


async def test_statistics_of_running_jobs_alone_mislead_nobody(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    await keep_statistics(connection, "jobs")
    await add_worker(connection)
    await fill_running(connection, 20_000)
    await connection.execute("vacuum analyze howdah.jobs")
    await check(connect, "20,000 running jobs, fresh statistics", looks_over=20_000)
    await fill(connection, 200_000)
    await check(connect, "20,000 running jobs and 200,000 more, statistics of the first", looks_over=20_000)


async def test_statistics_of_a_table_that_was_empty_mislead_nobody(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """So a vacuum finds a queue that has run dry, and an analyze one into which somebody is inserting: many pages, and no row in them."""
    await keep_statistics(connection, "jobs")
    await connection.execute("alter table howdah.jobs set (vacuum_truncate = off)")
    await add_worker(connection)
    await fill(connection, 10_000)
    await connection.execute("delete from howdah.jobs")
    await connection.execute("vacuum analyze howdah.jobs")
    first = await connection.fetchval("select last_value + 1 from howdah.jobs_id_seq")
    await fill_running(connection, 20_000)
    await fill(connection, 200_000)
    await check(connect, "20,000 running jobs and 200,000 more, statistics of an empty table", looks_over=20_000)
    for name, outcome in product(("ack", "ack_completed"), ("completed", "retried")):
        if name == "ack_completed" and outcome != "completed":
            continue
        for mode, (jobs, bound) in product(MODES, ((1, SMALL_BOUND), (100, ACK_BOUND))):
            cost = await measure(connect, ack(name, outcome, first, jobs), None, mode)
            assert (cost.buffers <= bound, cost.sequential_scans) == (True, 0), (
                f"{name} of {jobs} {outcome}, {mode}: {cost}"
            )
        # All of them at once: 0.5 s; a join of all with all takes a minute.
        await connection.execute("begin; set local statement_timeout = '10s'")
        await connection.execute(ack(name, outcome, first, 20_000))
        await connection.execute("rollback")


def ack(function: str, outcome: str, first: int, count: int) -> str:
    """Write a call that acks running jobs; the lease of the first is 1."""
    ids, leases = (
        f"array(select generate_series({first}, {first + count - 1}))",
        f"array(select generate_series(1, {count}))",
    )
    nothing, seconds = f"array_fill(null::jsonb, array[{count}])", f"array_fill(0.01::float8, array[{count}])"
    if function == "ack_completed":
        return f"select howdah.ack_completed({ids}, {leases}, {nothing}, {seconds}, {seconds}, true)"
    errors = nothing if outcome == "completed" else f"array_fill(jsonb_build_object('error', 'x'), array[{count}])"
    return f"""select count(*) from howdah.ack({ids}, {leases}, array_fill('{outcome}'::text, array[{count}]), {nothing}, {errors},
        {seconds}, {seconds}, {seconds}, {nothing}, true)"""


async def test_a_delay_is_cheap_when_nothing_else_is_scheduled(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """The alarm must not look for an earlier job in a table that holds none."""
    await keep_statistics(connection, "jobs")
    await add_worker(connection)
    await connection.execute("insert into howdah.jobs (kind) select 'work' from generate_series(1, 100000)")
    await connection.execute("vacuum analyze howdah.jobs")
    await check(connect, "100,000 ready jobs and nothing scheduled")


async def test_coalescing_is_linear_when_its_statistics_are_of_an_empty_table(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """Events are taken out as they come, so statistics find the table empty, though its pages are there."""
    await keep_statistics(connection, "events")
    events = """insert into howdah.events (due_at, kind, key, payload)
        select now() - interval '1 second', 'work', 'key' || n % 10000, '{}' from generate_series(1, 40000) n"""
    await connection.execute(events)
    await connection.execute("delete from howdah.events")
    await connection.execute("vacuum analyze howdah.events")
    await connection.execute(events)
    for mode in MODES:
        other = await connect()
        await other.execute(f"set plan_cache_mode = {mode}")
        append = await measure(connect, "select howdah.enqueue_coalesced('work', key => 'k')", None, mode)
        assert append.buffers <= SMALL_BOUND
        await other.execute("set statement_timeout = '10s'")  # 0.3 s; a join of all with all takes 80
        await other.execute("begin")
        assert await other.fetchval("select made from howdah.coalesce_events(20000)") == 10_000
        await other.execute("rollback")


async def test_no_pinned_plan_is_compiled(connection: asyncpg.Connection) -> None:
    """A scan that is switched off and yet needed looks so dear that PostgreSQL compiles it: 100 ms at each call."""
    rows = await connection.fetch(
        """select proname from pg_proc where pronamespace = 'howdah'::regnamespace
        and array_to_string(proconfig, ' ') like '%enable\\_%' and not 'jit=off' = any (proconfig)"""
    )
    assert rows == []


@pytest.mark.parametrize("keyed", [False, True])
async def test_claims_are_heap_only_updates(connection: asyncpg.Connection, connect: Connect, *, keyed: bool) -> None:
    """A claim that writes indexes would put a second entry for each job into the one that claims walk.

    Somebody holds a snapshot open, so that no old version can be cleared away: what makes room for the new ones is the
    free part of each page alone.
    """
    reader = await connect()
    await reader.execute("begin isolation level repeatable read; select from howdah.jobs")
    jobs, batch = 20_000, 100
    for first in range(0, jobs, 2_000):
        await enqueue_many(
            connection,
            *(
                {"kind": "work", "payload": {"n": n}, "subject": f"course:{n % 7}", "priority": n % 3}
                | ({"unique_key": f"k{n}"} if keyed else {})
                for n in range(first, first + 2_000)
            ),
        )
    changes = """select pg_stat_get_xact_tuples_updated('howdah.jobs'::regclass) as updated,
        pg_stat_get_xact_tuples_hot_updated('howdah.jobs'::regclass) as hot"""
    updated = hot = 0
    while True:
        async with connection.transaction():
            before = await connection.fetchrow(changes)
            held = await claim(connection, count=batch, lines=[Line("default")])
            after = await connection.fetchrow(changes)
        if not held:
            break
        assert after["updated"] - before["updated"] == len(held)
        updated += after["updated"] - before["updated"]
        hot += after["hot"] - before["hot"]
    assert updated == jobs
    assert hot >= 0.95 * updated, f"{hot} of {updated}"
