"""How far ahead a worker claims: short jobs by the hundred, long ones only into free slots, and never much work in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon

SLOTS = 10
#: What may wait in hand beyond the slots, in seconds of work for each slot; and as much again for a busy machine.
AHEAD = 0.1 * 2
#: A job of so many seconds that was claimed for no free slot waits at least so long.
LONG = 0.4
SLEEPERS = """
@handler("work")
async def work(job: Job) -> None:
    await asyncio.sleep(job.payload.get("seconds", 0))

@handler("busy")
async def busy(job: Job) -> None:
    time.sleep(job.payload["seconds"])

@handler("long")
async def long(job: Job) -> None:
    await asyncio.sleep(job.payload["seconds"])
"""


async def drained(daemon: StartDaemon, connection: asyncpg.Connection, *jobs: dict[str, object]) -> None:
    """Enqueue, let one worker with ten slots run all of it."""
    await enqueue_many(connection, *jobs)
    await daemon(SLEEPERS, queues=f"default:{SLOTS}")
    await aeventually(lambda: is_empty(connection), 30)


async def largest_claim(connection: asyncpg.Connection) -> int:
    """Count the jobs of the largest claim: each has a lease of its own."""
    count: int = await connection.fetchval(
        "select max(jobs) from (select count(*) as jobs from howdah.job_history group by lease) claims"
    )
    return count


async def most_work_in_hand(connection: asyncpg.Connection) -> float:
    """Give the most seconds of work for each slot that ever waited in hand, seen at every claim with what it brought."""
    seconds: float = await connection.fetchval(
        """select max(work) from (
          select sum(extract(epoch from waiting.finished_at - waiting.started_at))::float8 / $1 as work
          from (select distinct claimed_at as at from howdah.job_history) claim
          join howdah.job_history waiting on waiting.claimed_at <= claim.at and waiting.started_at >= claim.at
          group by claim.at) claims""",
        SLOTS,
    )
    return seconds


async def most_in_hand(connection: asyncpg.Connection) -> int:
    """Count the most jobs that were claimed and not started at once, seen at every claim with what it brought."""
    count: int = await connection.fetchval(
        """select max(jobs) from (
          select count(*) as jobs from (select distinct claimed_at as at from howdah.job_history) claim
          join howdah.job_history waiting on waiting.claimed_at <= claim.at and waiting.started_at > claim.at
          group by claim.at) claims"""
    )
    return count


async def longest_in_hand(connection: asyncpg.Connection, kind: str) -> float:
    """Give the longest that a job of a kind was claimed and not started, in seconds."""
    seconds: float = await connection.fetchval(
        "select extract(epoch from max(started_at - claimed_at))::float8 from howdah.job_history where kind = $1", kind
    )
    return seconds


async def test_jobs_of_no_time_are_claimed_by_the_hundred(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await drained(daemon, connection, *({"kind": "work"} for _ in range(2_000)))
    assert await largest_claim(connection) >= 100


async def test_jobs_of_milliseconds_are_never_in_hand_for_more_than_a_tenth_of_a_second_of_work(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await drained(daemon, connection, *({"kind": "work", "payload": {"seconds": 0.008}} for _ in range(1_500)))
    assert await most_work_in_hand(connection) <= AHEAD


async def test_of_jobs_that_keep_the_processor_busy_a_tenth_of_a_second_is_in_hand_beyond_the_slots(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    busy, seconds = "busy", 0.005
    await drained(daemon, connection, *({"kind": busy, "payload": {"seconds": seconds}} for _ in range(600)))
    assert await most_in_hand(connection) <= SLOTS + 0.1 / seconds * 2


async def test_a_kind_that_never_ran_is_claimed_only_into_free_slots(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    long, short = {"kind": "long", "payload": {"seconds": LONG}}, {"kind": "work"}
    await drained(daemon, connection, *([short] * 50))
    await enqueue_many(connection, *([long, short] * (4 * SLOTS)))
    await aeventually(lambda: is_empty(connection), 30)
    assert await longest_in_hand(connection, "long") < LONG


async def test_short_jobs_are_claimed_ahead_beside_a_long_kind_too(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    long, short = {"kind": "long", "payload": {"seconds": LONG}}, {"kind": "work"}
    await drained(daemon, connection, long, *([short] * 50))
    await enqueue_many(connection, *([long] * (SLOTS // 2)), *([short] * 5_000))
    await aeventually(lambda: is_empty(connection), 30)
    assert await largest_claim(connection) >= 10 * SLOTS


async def test_long_jobs_are_claimed_only_into_free_slots(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await drained(daemon, connection, *({"kind": "long", "payload": {"seconds": LONG}} for _ in range(4 * SLOTS)))
    assert await largest_claim(connection) <= SLOTS
    assert await longest_in_hand(connection, "long") < LONG


async def test_long_jobs_beside_short_ones_are_claimed_only_into_free_slots(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    # One of each runs first: what has never run is not known to be long.
    long, short = {"kind": "long", "payload": {"seconds": LONG}}, {"kind": "work"}
    await drained(daemon, connection, long, *([short] * 50))
    await enqueue_many(connection, *([long, short] * (4 * SLOTS)))
    await aeventually(lambda: is_empty(connection), 30)
    assert await longest_in_hand(connection, "long") < LONG


async def test_a_long_job_is_not_held_up_by_short_ones_that_came_after_it(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    long, short = {"kind": "long", "payload": {"seconds": LONG}}, {"kind": "work"}
    await drained(daemon, connection, long, *([short] * 50))
    await enqueue_many(connection, *([short] * 2_000), long, *([short] * 28_000))
    await aeventually(lambda: is_empty(connection), 30)
    before = await connection.fetchval(
        """select count(*) from howdah.job_history where kind = 'work'
        and started_at < (select max(started_at) from howdah.job_history where kind = 'long')"""
    )
    assert before < 15_000
