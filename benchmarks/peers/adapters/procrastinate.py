"""procrastinate: psycopg, ten jobs at once, which is where it is fastest."""

from __future__ import annotations

from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, URL, handle, main, send_in_time

PEER = Peer(
    name="procrastinate",
    requires=("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.6", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"concurrency": 10, "pool": 20},
    bounded={"concurrency": 100, "pool": 20},
    fill="insert into procrastinate_jobs (queue_name, task_name, priority, args, status)"
    " select 'default', 'job', 0, {payload}, 'todo' from generate_series(1, {count}) n",
    finished="select not exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    slow=5_000,
    note="ten at once; what is done is deleted",
)


def _app(size: int) -> tuple[Any, Any]:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=1, max_size=size))

    async def job(**payload: Any) -> None:
        await handle(payload)

    return app, app.task(name="job", queue="default")(job)


async def setup() -> None:
    """Make its tables."""
    app, _ = _app(2)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def send() -> None:
    """Defer single jobs."""
    app, task = _app(2)
    async with app.open_async():
        await send_in_time(lambda payload: task.defer_async(**payload))


async def work() -> None:
    """Run one worker."""
    app, _ = _app(SETTINGS["pool"])
    async with app.open_async():
        await app.run_worker_async(
            concurrency=SETTINGS["concurrency"], install_signal_handlers=False, wait=True, delete_jobs="successful"
        )


if __name__ == "__main__":
    main(setup=setup, send=send, work=work)
