"""What keeps posts in order: like counts, ranks, and the removal of what has expired."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field

from handlers.gallery import remove_unused
from howdah import Job, Schedule, handler

_BATCH = 500  # rows a statement: its locks are held for some milliseconds, and progress moves
_FILES = 100  # files a batch: while they go, their rows are held
_FIRST = UUID(int=0)


class SyncLikes(BaseModel):
    """Which post."""

    post_id: UUID


@handler("sync_like_count", priority=5, transaction=True, timeout=30, max_attempts=5)
async def sync_like_count(job: Job[SyncLikes], connection: asyncpg.Connection) -> dict[str, int | None]:
    """Make a post's stored like count equal to its ratings. `likes` is null in the result if the post is gone."""
    likes = await connection.fetchval("select app.sync_post_like_count($1)", job.payload.post_id)
    return {"likes": likes}


class ResyncLikes(BaseModel):
    """Nothing: all posts."""


@handler("resync_like_counts", timeout=3600)
async def resync_like_counts(job: Job[ResyncLikes]) -> dict[str, int]:
    """Correct every stored like count that has drifted. A run that is repeated begins anew and finds less to do."""
    checked = repaired = 0
    async with job.connection() as connection:
        total = await connection.fetchval("select count(*) from app.posts")
        past = _FIRST
        while True:
            [batch] = await connection.fetch("select * from app.resync_like_counts_batch($1, $2)", past, _BATCH)
            if batch["last"] is None:
                return {"checked": checked, "repaired": repaired}
            past = batch["last"]
            checked += batch["checked"]
            repaired += batch["repaired"]
            await job.report({"checked": checked, "repaired": repaired, "total": max(total, checked)})


class RecomputeRankings(BaseModel):
    """How many of the newest posts are ranked."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


# Newer likes outweigh a run that was missed, and two at once would write the same ranks.
@handler("recompute_rankings", transaction=True, schedule=Schedule("*/10 * * * *", missed="skip", overlap="skip"))
async def recompute_rankings(job: Job[RecomputeRankings], connection: asyncpg.Connection) -> dict[str, int]:
    """Rank the newest posts by likes against age. `changed` counts the ranks that were written."""
    return {"changed": await connection.fetchval("select app.recompute_rankings($1)", job.payload.limit)}


class CleanupExpired(BaseModel):
    """How long ago something must have expired to be deleted."""

    older_than_days: Annotated[int, Field(ge=0, le=36_500)] = 30


@handler("cleanup_expired", timeout=3600, schedule=Schedule("30 3 * * *", overlap="skip"))
async def cleanup_expired(job: Job[CleanupExpired]) -> dict[str, int]:
    """Delete expired sessions, old entries of the activity log, and images that no post shows, their files first.

    Batch by batch, each committed by itself: a run that is cut short has done what it has told.
    """
    age = timedelta(days=job.payload.older_than_days)
    deleted = {"sessions": 0, "activity": 0, "images": 0}
    problems: list[Exception] = []
    async with job.connection() as connection:
        while batch := await connection.fetchval("select app.delete_expired_sessions($1, $2)", age, _BATCH):
            deleted["sessions"] += batch
            await job.report({**deleted})
        while batch := await connection.fetchval("select app.delete_old_activity($1, $2)", age, _BATCH):
            deleted["activity"] += batch
            await job.report({**deleted})
        while (removed := await remove_unused(connection, job.resources["storage"], _FILES)) != (0, []):
            deleted["images"] += removed[0]
            problems += removed[1]
            await job.report({**deleted})
    if problems:
        raise ExceptionGroup(f"{len(problems)} files could not be removed; their rows are kept", problems[:10])
    return deleted
