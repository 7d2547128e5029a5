"""What comes to lie behind the marks of a worker is found, though its claims do not go there."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect, Database, StartDaemon

WORK = """
@handler("work")
async def work(job: Job) -> None:
    await asyncio.sleep(0.005)
"""
SLOTS = 10
#: More than can be passed over in the time of a look that is not dear.
DEAD = 100_000


async def test_an_urgent_job_that_commits_late_overtakes_a_long_line(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect
) -> None:
    """Claims come back full all the time, and that is no reason never to look behind."""
    other = await connect()
    late = other.transaction()
    await late.start()
    urgent = await enqueue(other, priority=10)
    jobs = 8_000
    await enqueue_many(connection, *({"kind": "work"} for _ in range(jobs)))
    await daemon(WORK, queues=f"default:{SLOTS}")
    await aeventually(lambda: ended(connection, 1_000))
    await late.commit()
    await end_of(connection, urgent)
    assert await connection.fetchval("select count(*) from howdah.jobs") > jobs / 4


async def test_behind_a_snapshot_the_late_are_found_beside_the_claims(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database
) -> None:
    await connection.execute(f"alter database {database.name} set track_functions = 'pl'")
    holder = await connect()
    await holder.execute("begin isolation level repeatable read; select from howdah.jobs")
    await connection.execute("insert into howdah.jobs (kind) select 'work' from generate_series(1, $1::int)", DEAD)
    await connection.execute("delete from howdah.jobs")
    await daemon(WORK, queues=f"default:{SLOTS}")
    for _ in range(3):
        jobs = [await enqueue(connection, priority=number % 3, delay=timedelta(seconds=0.2)) for number in range(20)]
        later = await enqueue(connection)
        await end_of(connection, later)
        for job in jobs:
            assert (await end_of(connection, job))["state"] == "completed"
    await aeventually(lambda: looks(connection))
    await aeventually(lambda: is_empty(connection))


async def ended(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) >= $1 from howdah.job_history", count))


async def looks(connection: asyncpg.Connection) -> int:
    """Count the looks that were made beside the claims."""
    calls = await connection.fetchval("select calls from pg_stat_user_functions where funcname = 'find_behind'")
    return calls or 0
