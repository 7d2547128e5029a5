"""saq on PostgreSQL: psycopg, a pool of twenty connections."""

from __future__ import annotations

import asyncio
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, new_payload, send_in_time

PEER = Peer(
    name="saq",
    requires=("saq[postgres]==0.26.4", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"concurrency": 50, "pool": 20},
    bounded={"concurrency": 100, "pool": 20},
    finished="select not exists (select from saq_jobs where status in ('queued', 'active', 'new'))",
    slow=5_000,
    note="50 at once, 20 connections; no job is kept after its end",
)


async def job(_context: dict[str, Any], **payload: Any) -> None:
    """Do what the workload asks."""
    await handle(payload)


def _queue(size: int) -> Any:
    from psycopg_pool import AsyncConnectionPool
    from saq.queue.postgres import PostgresQueue

    small = min(4, size)
    pool = AsyncConnectionPool(URL, min_size=small, max_size=size, open=False)
    return PostgresQueue(pool=pool, name="default", manage_pool_lifecycle=True, min_size=small, max_size=size)


def _job(payload: dict[str, Any]) -> Any:
    from saq import Job

    return Job("job", kwargs=payload, ttl=-1, timeout=0)


async def setup() -> None:
    """Make its tables."""
    queue = _queue(4)
    await queue.connect()
    await queue.disconnect()


async def fill() -> None:
    """Enqueue all jobs, twenty at a time: it has no call for many."""
    queue, numbers = _queue(20), iter(range(TASK["count"]))
    await queue.connect()

    async def some() -> None:
        for n in numbers:
            await queue.enqueue(_job({**new_payload(), "n": n}))

    await asyncio.gather(*(some() for _ in range(20)))
    await queue.disconnect()


async def send() -> None:
    """Enqueue single jobs."""
    queue = _queue(4)
    await queue.connect()
    await send_in_time(lambda payload: queue.enqueue(_job(payload)))
    await queue.disconnect()


async def work() -> None:
    """Run one worker."""
    from saq import Worker

    queue = _queue(SETTINGS["pool"])
    Worker.SIGNALS = []
    worker = Worker(queue, functions=[job], concurrency=SETTINGS["concurrency"])
    await queue.connect()
    await worker.start()


if __name__ == "__main__":
    main(setup=setup, fill=fill, send=send, work=work)
