"""howdah.ack_completed: what howdah.ack writes of completions, at half its cost, and nothing where it would have to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import Held, ack, claim, claim_one, completed, ended, enqueue, live, register, retried

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect

#: What differs between two jobs that are alike.
OWN = {"id", "created_at", "ready_at", "claimed_at", "started_at", "finished_at", "lease", "unique_key", "errors"}


async def ack_completed(
    connection: asyncpg.Connection,
    *jobs: Held,
    run: float = 0.5,
    age: float | None = None,
    result: Any = None,
    keep: bool = True,
) -> list[int] | None:
    """Write completions; gives the ids that were left."""
    count = len(jobs)
    left: list[int] | None = await connection.fetchval(
        "select howdah.ack_completed($1, $2, $3::text[]::jsonb[], $4, $5, $6)",
        [job.id for job in jobs],
        [job.lease for job in jobs],
        [result] * count,
        [run if age is None else age] * count,
        [run] * count,
        keep,
    )
    return left


async def test_it_writes_what_ack_writes(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work", "fields": {}, "secret": ["password"]})
    batch = await connection.fetchval("select howdah.create_batch('work', '{}')")
    await enqueue(connection, "work", queue="elsewhere", batch=batch)  # keeps the batch open
    rows = []
    for how in ("ack", "ack_completed"):
        job_id = await enqueue(
            connection,
            payload={"password": "x", "n": 1},
            subject="a",
            headers={"h": 1},
            unique_key=how,
            batch=batch,
            max_attempts=7,
            priority=3,
        )
        await ack(connection, retried(await claim_one(connection)))
        await connection.execute("update howdah.jobs set progress = '{\"done\": 3}' where id = $1", job_id)
        job = await claim_one(connection)
        if how == "ack":
            await ack(connection, completed(job, {"r": 1}, run=0.5))
        else:
            assert await ack_completed(connection, job, result='{"r": 1}') == []
        row = await ended(connection, job_id)
        assert row is not None
        assert await live(connection, job_id) is None
        assert row["lease"] == job.lease
        assert row["unique_key"] == how
        assert len(row["errors"]) == 1
        assert row["payload"] == {"n": 1}
        assert row["claimed_at"] <= row["started_at"] <= row["finished_at"]
        rows.append({name: value for name, value in row.items() if name not in OWN})
    assert rows[0] == rows[1]
    assert rows[0]["progress"] == {"done": 3}
    # Both are counted, too.
    assert await connection.fetchval("select sum(completed) from howdah.batch_ends where batch = $1", batch) == 2


async def test_a_start_is_counted_back_from_the_end_but_never_before_the_claim_and_never_ends_later_than_now(
    connection: asyncpg.Connection,
) -> None:
    long, short = [await enqueue(connection) for _ in range(2)]
    first, second = await claim(connection)
    await connection.execute(
        "update howdah.jobs set claimed_at = claimed_at - interval '1 minute', created_at = created_at - interval '2 minutes'"
    )
    assert await ack_completed(connection, first, run=17, age=20) == []
    assert await ack_completed(connection, second, run=3600) == []
    row, other = await ended(connection, long), await ended(connection, short)
    assert row is not None
    assert other is not None
    assert (row["finished_at"] - row["started_at"]).total_seconds() == 17
    assert other["started_at"] == other["claimed_at"]
    assert other["finished_at"] <= await connection.fetchval("select clock_timestamp()")


async def test_an_old_lease_and_a_job_that_is_gone_are_left(connection: asyncpg.Connection) -> None:
    for _ in range(3):
        await enqueue(connection)
    current, stale, gone = await claim(connection)
    await connection.execute("update howdah.jobs set lease = lease + 1 where id = $1", stale.id)
    await ack(connection, completed(gone))
    assert set(await ack_completed(connection, stale, current, gone) or []) == {stale.id, gone.id}
    assert (await live(connection, stale.id) or {})["lease"] == stale.lease + 1
    assert await ended(connection, current.id) is not None
    assert await ack_completed(connection, current) == [current.id]
    assert await connection.fetchval("select count(*) from howdah.job_history") == 2


async def test_without_history_the_row_just_goes(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    job = await claim_one(connection)
    assert await ack_completed(connection, job, keep=False) == []
    assert await live(connection, job.id) is None
    assert await ended(connection, job.id) is None


async def test_a_row_that_somebody_holds_makes_it_give_up_within_a_moment_and_nothing_is_written(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    for _ in range(3):
        await enqueue(connection)
    jobs = await claim(connection)
    other = await connect()
    async with other.transaction():
        await other.execute("select from howdah.jobs where id = $1 for update", jobs[1].id)
        # Were it to wait, this would: nobody else lets the row go.
        assert await ack_completed(connection, *jobs) is None
        assert await connection.fetchval("select count(*) from howdah.jobs") == 3
    assert await ack_completed(connection, *jobs) == []


@pytest.mark.parametrize("statistics", ["none", "of an empty table"])
async def test_it_goes_by_the_primary_key_whatever_the_statistics_say(
    connection: asyncpg.Connection, statistics: str
) -> None:
    if statistics != "none":
        await connection.execute("analyze howdah.jobs")
    await connection.execute("select howdah.enqueue('work') from generate_series(1, 3000)")
    jobs = await claim(connection, count=1000)
    scans = "select seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where relid = 'howdah.jobs'::regclass"
    async with connection.transaction():
        before = await connection.fetchrow(scans)
        assert await ack_completed(connection, *jobs) == []
        after = await connection.fetchrow(scans)
    assert before is not None
    assert after is not None
    assert after["seq_scan"] == before["seq_scan"]
    assert after["idx_tup_fetch"] - before["idx_tup_fetch"] == 1000
