"""absurd: a durable-execution engine in PostgreSQL, whose worker polls; a job is a task of one step."""

from __future__ import annotations

from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, URL, handle, main, send_in_time

PEER = Peer(
    name="absurd",
    requires=("absurd-sdk==0.5.1", "absurdctl==0.5.1", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"concurrency": 50, "batch": 100, "poll": 0.25},
    bounded={"concurrency": 100, "batch": 100, "poll": 0.25},
    latency={"poll": 0.02},
    fill="select count(*) from generate_series(1, {count}) n, absurd.spawn_task('default', 'job', {payload}, '{}'::jsonb)",
    finished="select not exists (select from absurd.t_default where state not in ('completed', 'failed', 'cancelled'))",
    slow=5_000,
    note="polls every 250 ms, for latency every 20 ms",
)


def _client() -> Any:
    from absurd_sdk import AsyncAbsurd

    client = AsyncAbsurd(URL)

    async def job(payload: dict[str, Any], _context: Any = None) -> None:
        await handle(payload)

    client.register_task("job")(job)
    return client


async def setup() -> None:
    """Make its schema and its queue."""
    import absurdctl
    import asyncpg

    connection = await asyncpg.connect(URL)
    await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
    await connection.execute("select absurd.create_queue('default')")
    await connection.close()


async def send() -> None:
    """Spawn single tasks."""
    client = _client()
    await send_in_time(lambda payload: client.spawn("job", payload))
    await client.close()


async def work() -> None:
    """Run one worker."""
    await _client().start_worker(
        concurrency=SETTINGS["concurrency"], batch_size=SETTINGS["batch"], poll_interval=SETTINGS["poll"]
    )


if __name__ == "__main__":
    main(setup=setup, send=send, work=work)
