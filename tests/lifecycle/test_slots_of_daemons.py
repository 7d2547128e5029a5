"""How many handlers run at once: never more than a queue's slots, nor than the cap over all queues; and no fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import RECORD, is_empty, make_runs, runs
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon


async def most_at_once(connection: asyncpg.Connection, queue: str | None = None) -> int:
    """The largest number of handlers that were between their first and their last word, by the database's clock."""
    most: int = await connection.fetchval(
        """select max(open) from (
          select sum(step) over (order by at, step) as open from (
            select started_at as at, 1 as step, queue from public.runs
            union all select ended_at, -1, queue from public.runs) steps
          where $1::text is null or queue = $1) opened""",
        queue,
    )
    return most


async def test_queues_use_all_of_their_own_slots_and_never_more(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    jobs = [{"kind": "record", "queue": queue, "payload": {"seconds": 0.03}} for queue in ("a", "b", "c")]
    await enqueue_many(connection, *(jobs * 20))
    await daemon(RECORD, queues="a:1,b:3,c:6")
    await aeventually(lambda: is_empty(connection))
    assert {queue: await most_at_once(connection, queue) for queue in "abc"} == {"a": 1, "b": 3, "c": 6}
    assert len(await runs(connection, "job")) == 60


async def test_the_cap_over_all_queues_is_reached_and_never_exceeded(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    jobs = [{"kind": "record", "queue": queue, "payload": {"seconds": 0.03}} for queue in ("a", "b", "c")]
    await enqueue_many(connection, *(jobs * 20))
    await daemon(RECORD, queues="a:10,b:10,c:2", concurrency=4)
    await aeventually(lambda: is_empty(connection))
    assert await most_at_once(connection) == 4
    assert await most_at_once(connection, "c") <= 2
    assert len(set(await runs(connection, "job"))) == 60


async def test_a_full_queue_does_not_hold_up_another(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await make_runs(connection)
    slow = {"kind": "record", "queue": "slow", "payload": {"seconds": 30}}
    await enqueue_many(connection, *([slow] * 20))
    worker = await daemon(RECORD, queues="slow:2,fast:2")
    await aeventually(lambda: runs(connection, "job"))
    await enqueue_many(connection, *({"kind": "record", "queue": "fast"} for _ in range(50)))

    async def fast_ones_have_ended() -> bool:
        ended = "select count(*) from howdah.job_history where queue = 'fast' and state = 'completed'"
        return await connection.fetchval(ended) == 50

    await aeventually(fast_ones_have_ended)
    assert await worker.metric('howdah_slots_used{queue="slow"}') == 2
    assert await connection.fetchval("select count(*) from howdah.jobs") == 20
