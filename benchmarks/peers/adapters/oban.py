"""oban for Python: psycopg, a producer a queue, acks in batches."""

from __future__ import annotations

import asyncio
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, URL, handle, main, send_in_time

PEER = Peer(
    name="oban",
    requires=("oban==0.7.0", "psycopg[binary,pool]==3.3.6", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"limit": 1000},
    bounded={"limit": 100},
    fill="insert into oban_jobs (args, queue, worker, state, max_attempts, priority)"
    " select {payload}, 'default', 'peers.adapters.oban.Job', 'available', 20, 0 from generate_series(1, {count}) n",
    finished="select not exists (select from oban_jobs where state in ('available', 'executing', 'scheduled', 'retryable'))",
    note="a limit of 1,000; a retry after a second instead of fifteen",
)


async def _pool(size: int) -> Any:
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(conninfo=URL, min_size=1, max_size=size, open=False)
    await pool.open()
    await pool.wait()
    return pool


def _job() -> Any:
    """Make the worker's class, under the name by which its rows know it."""
    from oban import worker

    class Job:
        async def process(self, job: Any) -> None:
            await handle(job.args)

        def backoff(self, _job: Any) -> int:
            return 1

    Job.__module__, Job.__qualname__ = "peers.adapters.oban", "Job"
    return worker(queue="default")(Job)


async def setup() -> None:
    """Make its tables."""
    from oban import schema

    pool = await _pool(2)
    await schema.install(pool)
    await pool.close()


async def send() -> None:
    """Enqueue single jobs."""
    from oban import Oban

    kind, pool = _job(), await _pool(2)
    oban = Oban(pool=pool)
    await oban.start()
    await send_in_time(lambda payload: oban.enqueue(kind.new(payload)))
    await oban.stop()
    await pool.close()


async def work() -> None:
    """Run one queue."""
    from oban import Oban

    _job()
    await Oban(pool=await _pool(10), queues={"default": SETTINGS["limit"]}).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(setup=setup, send=send, work=work)
