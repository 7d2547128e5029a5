"""A program that waits for its jobs hears of their ends, whatever happens to the wire, the server and the workers."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import state_of
from support.proxy import proxied

from howdah import Client, NewJob
from howdah.database import connected
from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate
from howdah.waiting import LAST

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

FAST = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "20"}

#: Ends when the test says so.
HELD = """
@handler("held")
async def held(job: Job) -> dict[str, Any]:
    while not Path("go").exists():
        await asyncio.sleep(0.005)
    return {"ended": time.time()}
"""


async def test_a_wait_tells_the_result_of_a_real_worker_soon_after_the_end(
    daemon: StartDaemon, database: Database
) -> None:
    worker = await daemon(HELD)
    async with Client(database.url) as client:
        job = await client.enqueue("held")
        wait = asyncio.create_task(client.wait(job.id, timeout=20))
        # The looks are a second apart by then, and the next one is far: only the engine's word can be quicker.
        seen = client._waits._waits
        await aeventually(lambda: seen[job.id].pause == LAST and seen[job.id].look_at > monotonic() + 0.8)
        next_look = seen[job.id].look_at
        (worker.folder / "go").touch()
        status = await wait
        assert monotonic() < next_look - 0.4
        assert status.state == "completed"
        assert status.result["ended"] > 0
        await client.wait_idle(kind="held", timeout=5)


async def test_a_wait_is_found_by_looking_when_nothing_can_be_heard(
    daemon: StartDaemon, database: Database, connection: asyncpg.Connection
) -> None:
    await daemon()
    async with proxied(database.url) as wire, Client(database.url, listen_url=wire.url) as client:
        wire.refusing = True
        for _ in range(3):
            job = await client.enqueue("work", {"n": 1})
            assert (await client.wait(job.id, timeout=5)).result == {"echo": {"n": 1}}
        held = await client.enqueue("work", delay=60)
        wait = asyncio.create_task(client.wait(held.id, timeout=20))
        wire.refusing = False
        await aeventually(lambda: client._waits._hearing)
        wire.refusing = True
        wire.cut()
        await aeventually(lambda: not client._waits._hearing)
        await connection.execute("select howdah.cancel($1)", held.id)
        assert (await wait).state == "cancelled"


async def test_many_waits_hear_of_many_ends(daemon: StartDaemon, database: Database) -> None:
    await daemon()
    async with Client(database.url) as client:
        jobs = await client.enqueue_many(NewJob("work", {"n": n}) for n in range(1000))
        ended = await asyncio.gather(*(client.wait(job.id, timeout=30) for job in jobs))
    assert [status.result["echo"]["n"] for status in ended] == list(range(1000))


@pytest.mark.faults
async def test_a_wait_outlives_the_worker_that_had_the_job(
    daemon: StartDaemon, database: Database, connection: asyncpg.Connection
) -> None:
    first = await daemon(HELD, lease_ttl=1)
    async with Client(database.url) as client:
        job = await client.enqueue("held")
        wait = asyncio.create_task(client.wait(job.id, timeout=30))

        async def runs() -> bool:
            return await state_of(connection, job.id) == "running"

        await aeventually(runs)
        first.kill()
        second = await daemon(HELD, lease_ttl=1)
        (second.folder / "go").touch()
        status = await wait
    assert (status.state, status.worker) == ("completed", second.worker)


@pytest.mark.faults
async def test_a_wait_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data", settings=FAST) as server:
        async with connected(server.url()) as connection:
            await migrate(connection)
        async with Client(server.url()) as client:
            job = await client.enqueue("work", delay=60)
            waits = [asyncio.create_task(client.wait(job.id)), asyncio.create_task(client.wait_idle(kind="work"))]
            await aeventually(lambda: client._waits._hearing)
            await asyncio.to_thread(server.restart, immediate=True)
            async with connected(server.url()) as connection:
                await connection.execute("select howdah.cancel($1)", job.id)
            await asyncio.wait_for(asyncio.gather(*waits), 20)
            # The wait of before the restart hears again, too.
            await aeventually(lambda: client._waits._hearing)
