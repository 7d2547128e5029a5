"""pgqueuer: asyncpg, one statement a batch, the documented way to run it in one's own process."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, send_batches, send_in_time

PEER = Peer(
    name="pgqueuer",
    requires=("pgqueuer[asyncpg]==1.6.0", "uvloop==0.22.1"),
    best={"batch": 2000},
    bounded={"batch": 100, "tasks": 200},
    fill="insert into pgqueuer (priority, status, entrypoint, payload)"
    " select 0, 'queued', 'job', convert_to({payload}::text, 'UTF8') from generate_series(1, {count}) n",
    finished="select not exists (select from pgqueuer where status in ('queued', 'picked'))",
    main=True,
    note="batches of 2,000; bounded, it insists on twice the batch: 200 at once",
)


async def _queries() -> tuple[Any, Any]:
    import asyncpg
    from pgqueuer.adapters.persistence.queries import Queries

    pool = await asyncpg.create_pool(URL, min_size=1, max_size=4)
    return pool, Queries.from_asyncpg_pool(pool)


async def setup() -> None:
    """Make its tables."""
    pool, queries = await _queries()
    await queries.install()
    await pool.close()


async def send() -> None:
    """Enqueue single jobs."""
    pool, queries = await _queries()
    await send_in_time(lambda payload: queries.enqueue("job", json.dumps(payload).encode()))
    await pool.close()


async def flood() -> None:
    """Enqueue in batches."""
    pool, queries = await _queries()

    async def some(payloads: list[dict[str, Any]]) -> None:
        count = len(payloads)
        await queries.enqueue(["job"] * count, [json.dumps(payload).encode() for payload in payloads], [0] * count)

    await send_batches(some)
    await pool.close()


async def work() -> None:
    """Run its queue manager."""
    import asyncpg
    from pgqueuer import PgQueuer

    pool = await asyncpg.create_pool(URL, min_size=4, max_size=4)
    queuer = PgQueuer.from_asyncpg_pool(pool)
    options: dict[str, Any] = {}
    if TASK["handler"] == "failing":
        from pgqueuer.executors import DatabaseRetryEntrypointExecutor

        options["executor_factory"] = lambda parameters: DatabaseRetryEntrypointExecutor(
            parameters, max_attempts=3, initial_delay=timedelta(seconds=1)
        )

    @queuer.entrypoint("job", **options)
    async def job(job: Any) -> None:
        await handle(json.loads(job.payload))

    bound = {"max_concurrent_tasks": SETTINGS["tasks"]} if "tasks" in SETTINGS else {}
    await queuer.run(batch_size=SETTINGS["batch"], dequeue_timeout=timedelta(seconds=30), **bound)


if __name__ == "__main__":
    main(setup=setup, send=send, flood=flood, work=work)
