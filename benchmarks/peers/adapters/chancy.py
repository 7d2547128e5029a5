"""chancy: psycopg, an executor of coroutines, polling at once while there is work."""

from __future__ import annotations

import logging
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, URL, handle, main, send_in_time

PEER = Peer(
    name="chancy",
    requires=("chancy==0.26.0", "psycopg[binary,pool]==3.3.6", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"concurrency": 2000},
    bounded={"concurrency": 100},
    fill="insert into chancy_jobs (id, queue, func, kwargs, priority, max_attempts, scheduled_at, state, limits, meta)"
    " select gen_random_uuid(), 'default', 'peers.adapters.chancy.job', {payload}::json, 0, 1, now(), 'pending', '[]', '{}'"
    " from generate_series(1, {count}) n",
    finished="select not exists (select from chancy_jobs where state in ('pending', 'running', 'retrying'))",
    note="2,000 at once, eager polling",
)


async def job(**payload: Any) -> None:
    """Do what the workload asks."""
    await handle(payload)


async def setup() -> None:
    """Make its tables."""
    from chancy import Chancy

    async with Chancy(URL) as chancy:
        await chancy.migrate()


async def send() -> None:
    """Enqueue single jobs."""
    from chancy import Chancy, Job

    async with Chancy(URL) as chancy:
        await send_in_time(
            lambda payload: chancy.push(Job(func="peers.adapters.chancy.job", kwargs=payload, queue="default"))
        )


async def work() -> None:
    """Run one worker."""
    from chancy import Chancy, Queue, Worker

    async with Chancy(URL) as chancy:
        chancy.log.setLevel(logging.WARNING)
        queue = Queue(
            "default",
            concurrency=SETTINGS["concurrency"],
            executor=Chancy.Executor.Async,
            polling_interval=1,
            eager_polling=True,
        )
        await chancy.declare(queue, upsert=True)
        async with Worker(chancy, register_signal_handlers=False) as worker:
            await worker.wait_for_shutdown()


if __name__ == "__main__":
    main(setup=setup, send=send, work=work)
