"""What people may do to jobs and queues: cancel, retry, reschedule, pause, resume."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import ack, claim, claim_one, completed, enqueue, refused, released, retried, status

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect


async def cancel(connection: asyncpg.Connection, job_id: int) -> str:
    return str(await connection.fetchval("select howdah.cancel($1, 'ada', 'not needed')", job_id))


async def apply_signals(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch("select job_id, by, reason from howdah.apply_signals()")]


async def test_a_queued_job_is_cancelled_at_once(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, unique_key="one")
    assert await cancel(connection, job_id) == "cancelled"
    row = await status(connection, job_id)
    assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == ("cancelled", "ada", "not needed")
    assert row["finished_at"] >= row["created_at"]
    assert await claim(connection) == []
    assert await enqueue(connection, unique_key="one") != job_id


@pytest.mark.parametrize("delay", [timedelta(hours=1), timedelta(0)])
async def test_a_scheduled_job_is_cancelled_like_a_ready_one(connection: asyncpg.Connection, delay: timedelta) -> None:
    job_id = await enqueue(connection, delay=delay)
    assert await cancel(connection, job_id) == "cancelled"


async def test_a_running_job_is_told_and_not_touched(connection: asyncpg.Connection, connect: Connect) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    other = await connect()
    async with other.transaction():
        assert await cancel(other, job_id) == "running"
        # The canceller's transaction is still open, and yet the worker's ack goes through.
        await ack(connection, completed(job))
    assert (await status(connection, job_id))["state"] == "completed"
    assert await apply_signals(connection) == []
    assert await connection.fetchval("select count(*) from howdah.signals") == 0


async def test_the_request_for_a_running_job_is_given_to_the_workers(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await claim_one(connection)
    await cancel(connection, job_id)
    await connection.fetchval("select howdah.cancel($1, 'bob', 'me too')", job_id)
    assert await apply_signals(connection) == [(job_id, "ada", "not needed")]


@pytest.mark.parametrize("outcome", [retried, released])
async def test_a_job_that_would_come_back_after_its_cancellation_does_not(
    connection: asyncpg.Connection, outcome: Any
) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await cancel(connection, job_id)
    await ack(connection, outcome(job))
    row = await status(connection, job_id)
    assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == ("cancelled", "ada", "not needed")


async def test_a_job_that_went_back_while_its_cancellation_was_open_is_cancelled_by_the_upkeep(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    other = await connect()
    async with other.transaction():
        assert await cancel(other, job_id) == "running"
        await ack(connection, released(job))
    assert (await status(connection, job_id))["state"] == "ready"
    assert await apply_signals(connection) == []
    assert (await status(connection, job_id))["state"] == "cancelled"


async def test_cancelling_an_ended_job_changes_nothing_and_tells_its_state(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, completed(await claim_one(connection), {"n": 1}))
    before = await status(connection, job_id)
    assert await cancel(connection, job_id) == "completed"
    assert await status(connection, job_id) == before


async def test_cancelling_what_never_was_is_refused(connection: asyncpg.Connection) -> None:
    with refused("JB007", naming="4711"):
        await cancel(connection, 4711)


async def test_a_subject_is_cancelled_whole_and_nothing_else(connection: asyncpg.Connection) -> None:
    running = await enqueue(connection, subject="course:1")
    await claim_one(connection)
    queued = [await enqueue(connection, subject="course:1", delay=timedelta(hours=n)) for n in (0, 1)]
    other = await enqueue(connection, subject="course:2")
    assert await connection.fetchval("select howdah.cancel_subject('course:1', 'ada', 'gone')") == 3
    assert [(await status(connection, job_id))["state"] for job_id in queued] == ["cancelled", "cancelled"]
    assert (await status(connection, other))["state"] == "ready"
    assert await apply_signals(connection) == [(running, "ada", "gone")]


async def test_a_rolled_back_cancellation_never_happened(connection: asyncpg.Connection, connect: Connect) -> None:
    job_id = await enqueue(connection)
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    assert await cancel(other, job_id) == "cancelled"
    await transaction.rollback()
    assert (await claim_one(connection)).id == job_id


async def test_retry_makes_a_new_job_of_an_ended_one(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, payload={"n": 1}, priority=4, unique_key="k", subject="s", max_attempts=5)
    await ack(connection, completed(await claim_one(connection)))
    before = await status(connection, job_id)
    new_id = await connection.fetchval("select howdah.retry($1)", job_id)
    row = await status(connection, new_id)
    assert (row["retried_from"], row["attempt"], row["state"]) == (job_id, 0, "ready")
    for same in ("kind", "queue", "payload", "priority", "unique_key", "subject", "max_attempts"):
        assert row[same] == before[same]
    assert await status(connection, job_id) == before


async def test_retry_is_refused_while_the_key_is_held_or_the_job_lives(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, unique_key="k")
    with refused("JB007", naming=str(job_id)):
        await connection.fetchval("select howdah.retry($1)", job_id)
    await cancel(connection, job_id)
    await enqueue(connection, unique_key="k")
    with refused("JB005", naming="k"):
        await connection.fetchval("select howdah.retry($1)", job_id)
    with refused("JB007", naming="4711"):
        await connection.fetchval("select howdah.retry(4711)")


async def test_reschedule_moves_a_queued_job_both_ways(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    later = datetime.now(UTC) + timedelta(hours=1)
    await connection.execute("select howdah.reschedule($1, $2)", job_id, later)
    assert ((await status(connection, job_id))["state"], await claim(connection)) == ("scheduled", [])
    await connection.execute("select howdah.reschedule($1, $2)", job_id, datetime.now(UTC) - timedelta(hours=1))
    assert (await claim_one(connection)).id == job_id
    with refused("JB007", naming=str(job_id)):
        await connection.execute("select howdah.reschedule($1, $2)", job_id, later)


async def test_a_paused_queue_is_not_claimed_until_it_is_resumed(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await connection.execute("select howdah.pause('default', 'ada')")
    await connection.execute("select howdah.pause('default', 'bob')")
    assert await claim(connection) == []
    assert await connection.fetchval("select paused_by from howdah.queues where name = 'default'") == "ada"
    await connection.execute("select howdah.resume('default')")
    assert (await claim_one(connection)).id == job_id


async def test_an_attempt_too_many_buries_the_job_and_not_the_claims(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, max_attempts=1)
    await ack(connection, retried(await claim_one(connection)))
    assert (await status(connection, job_id))["state"] == "dead"
