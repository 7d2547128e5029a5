"""taskiq-postgres: asyncpg, a message a NOTIFY. It never looks for what lay there before; the harness notifies for it."""

from __future__ import annotations

import asyncio
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, new_payload, send_in_time

PEER = Peer(
    name="taskiq-postgres",
    requires=("taskiq-postgres[asyncpg]==0.9.1", "uvloop==0.22.1"),
    best={"tasks": 100, "pool": 20},
    bounded={"tasks": 100, "pool": 20},
    finished="select not exists (select from taskiq_messages)",
    slow=5_000,
    note="it hears of jobs by NOTIFY alone: in the drain somebody notifies the ids of what lies there",
)


def _broker(size: int) -> Any:
    from taskiq_pg.asyncpg import AsyncpgBroker

    broker = AsyncpgBroker(URL, write_kwargs={"min_size": 1, "max_size": size})

    async def job(n: int = 0, t: float = 0.0, fails: bool = False, pad: str = "") -> None:  # noqa: FBT001, FBT002 - as sent
        await handle({"n": n, "t": t, "fails": fails, "pad": pad})

    return broker, broker.register_task(job, task_name="job")


async def setup() -> None:
    """Make its tables."""
    broker, _ = _broker(1)
    await broker.startup()
    await broker.shutdown()


async def fill() -> None:
    """Enqueue all jobs, twenty at a time."""
    (broker, task), numbers = _broker(20), iter(range(TASK["count"]))
    await broker.startup()

    async def some() -> None:
        for n in numbers:
            await task.kiq(**{**new_payload(), "n": n})

    await asyncio.gather(*(some() for _ in range(20)))
    await broker.shutdown()


async def send() -> None:
    """Enqueue single jobs."""
    broker, task = _broker(1)
    await broker.startup()
    await send_in_time(lambda payload: task.kiq(**payload))
    await broker.shutdown()


async def work() -> None:
    """Run one receiver."""
    from taskiq.api import run_receiver_task

    broker, _ = _broker(SETTINGS["pool"])
    broker.is_worker_process = True
    kick = asyncio.create_task(_kick())
    await run_receiver_task(broker, max_async_tasks=SETTINGS["tasks"], max_prefetch=0, run_startup=True)
    await kick


async def _kick() -> None:
    import asyncpg

    await asyncio.sleep(2)
    connection = await asyncpg.connect(URL)
    await connection.execute("select pg_notify('taskiq', id::text) from taskiq_messages order by id")
    await connection.close()


if __name__ == "__main__":
    main(setup=setup, fill=fill, send=send, work=work)
