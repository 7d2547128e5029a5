"""The soak's handlers: what the workers load. Of one job in a hundred every start is written to a file that no crash takes back."""

from __future__ import annotations

import asyncio
import os

import asyncpg  # noqa: TC002 - the worker reads the annotations

from howdah import Job, handler

#: Of so many jobs one is watched closely; soak.watch_claims has the same number.
SAMPLE = 100
_starts = os.open(os.environ["SOAK_STARTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def started(job: Job) -> None:
    """Note a start, if this job is of the sample: one write, which the kernel keeps when the process is killed."""
    if job.id % SAMPLE == 0:
        os.write(_starts, b"%d %d\n" % (job.id, job.lease))


@handler("soak_nothing")
async def nothing(job: Job) -> None:
    """End at once."""
    started(job)


@handler("soak_effect", transaction=True, max_attempts=100, backoff=lambda _attempt: 0.2)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    """Write in one commit with the completion."""
    started(job)
    await connection.execute("insert into soak.effects (job_id) values ($1)", job.id)


@handler("soak_flaky", max_attempts=100, backoff=lambda _attempt: 1.0)
async def flaky(job: Job) -> int:
    """Fail as often as the payload says."""
    started(job)
    if job.attempt <= job.payload["failures"]:
        raise ConnectionError("the other side is away")
    return job.attempt


@handler("soak_keyed")
async def keyed(job: Job) -> None:
    """Run some seconds after it was enqueued, under a key."""
    started(job)


@handler("soak_limited")
async def limited(job: Job) -> None:
    """Hold one of a few places for a moment."""
    started(job)
    await asyncio.sleep(0.01)


@handler("soak_sleeping")
async def sleeping(job: Job) -> None:
    """Hold a slot for a second or so."""
    started(job)
    await asyncio.sleep(job.payload["seconds"])
