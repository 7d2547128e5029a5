"""The proof: what must be true when no job is left, and the sentence that says what is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Collection

    import asyncpg

    from demo.crowd import Crowd
    from demo.daemons import Daemon

_IDLE_TIMEOUT = 60.0
_LOOK = 0.1


async def wait_until_idle(pool: asyncpg.Pool, survivor: Daemon) -> None:
    """Return when no event and no job is left. Raises DemoError with what is still there after a minute."""
    deadline = asyncio.get_running_loop().time() + _IDLE_TIMEOUT
    while True:
        survivor.check_alive()
        # One statement: an event turns into its job in one commit, and must be seen as one of the two.
        left = await pool.fetch(
            """select 'event' as what, e.kind, 'not coalesced' as state, count(*) as number
               from howdah.events e group by e.kind
               union all
               select 'job', j.kind, j.state, count(*)
               from howdah.jobs j where j.state <> 'waiting' group by j.kind, j.state"""
        )
        if not left:
            return
        if asyncio.get_running_loop().time() > deadline:
            listed = ", ".join(f"{row['number']} {row['what']}s {row['kind']} ({row['state']})" for row in left)
            raise DemoError(f"after {_IDLE_TIMEOUT:g} s there is still {listed}")
        await asyncio.sleep(_LOOK)


async def find_losses(
    pool: asyncpg.Pool, crowd: Crowd, victim: Daemon, held: list[int], doomed: Collection[int]
) -> None:
    """Raise DemoError with a sentence for each thing that was lost; return if there is none. `doomed`: jobs that had to die."""
    sentences = [
        sentence
        for sentence in (
            await _wrong_counts(pool),
            await _wrong_likes(pool, crowd),
            await _nothing_proved(pool, crowd),
            await _dead_jobs(pool, doomed),
            await _doubled_jobs(pool),
            await _not_rescued(pool, victim, held),
        )
        if sentence is not None
    ]
    if sentences:
        raise DemoError("; ".join(sentences))


async def _wrong_counts(pool: asyncpg.Pool) -> str | None:
    drift = await pool.fetch("select post_id, stored, actual from app.like_drift order by post_id")
    if not drift:
        return None
    first = drift[0]
    return (
        f"{len(drift)} posts have drifted, such as {first['post_id']}: {first['stored']} stored, {first['actual']} true"
    )


async def _wrong_likes(pool: asyncpg.Pool, crowd: Crowd) -> str | None:
    """Compare the database with the crowd's own books."""
    stored = {
        (row["post_id"], row["session_id"])
        for row in await pool.fetch("select post_id, session_id from app.post_ratings")
    }
    if stored == crowd.likes:
        return None
    return f"{len(crowd.likes - stored)} likes are missing and {len(stored - crowd.likes)} are too many"


async def _nothing_proved(pool: asyncpg.Pool, crowd: Crowd) -> str | None:
    """Guard against a demonstration that shows nothing."""
    if not await pool.fetchval("select sum(likes) from app.posts"):
        return "no post has a like at the end, so the counts prove nothing"
    if crowd.outlived == 0:
        return "no transaction stayed open across the run of a job, so the interleaving was not shown"
    return None


async def _dead_jobs(pool: asyncpg.Pool, doomed: Collection[int]) -> str | None:
    dead = await pool.fetch(
        "select id, error from howdah.job_status where state = 'dead' and id <> all ($1::bigint[]) order by id", doomed
    )
    return f"{len(dead)} jobs are dead, such as job {dead[0]['id']}: {dead[0]['error']}" if dead else None


async def _doubled_jobs(pool: asyncpg.Pool) -> str | None:
    doubled = await pool.fetchval("select count(*) - count(distinct h.id) from howdah.job_history h")
    return f"{doubled} jobs have ended twice" if doubled else None


async def _not_rescued(pool: asyncpg.Pool, victim: Daemon, held: list[int]) -> str | None:
    """Find each job that the killed daemon held among the completed jobs of another."""
    completed = await pool.fetchval(
        """select count(*) from howdah.job_history h
           where h.id = any ($1) and h.state = 'completed' and h.leased_by <> $2""",
        held,
        victim.worker,
    )
    missing = len(held) - completed
    return (
        f"{missing} of the {len(held)} jobs that the killed daemon held are not done by the other" if missing else None
    )
