"""What soaks have found: a beat that waited for the database says nothing of now; a transaction cut off in its beginning; an alarm before its time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import end_of, state_of
from support.jobs import enqueue
from support.proxy import proxied

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

TTL = 6


@pytest.mark.fault(
    "Connections", "nobody gets through for longer than half of the ttl", "claims go on at once when the wire is back"
)
async def test_claims_go_on_as_soon_as_the_database_is_back(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    async with proxied(database.url) as wire:
        worker = await daemon(url=wire.url, lease_ttl=TTL)
        wire.refusing = True
        wire.cut()
        figures.faults += 1
        begun = time.monotonic()
        while not worker.log_events("claims no more"):
            await asyncio.sleep(0.05)
            assert time.monotonic() - begun < TTL
        wire.refusing = False
        back = time.monotonic()
        await end_of(connection, await enqueue(connection, "work", {}))
        figures.jobs += 1
        figures.recovered(time.monotonic() - back)
        # Connections are tried every second or so; the next beat would come two seconds later.
        assert time.monotonic() - back < 1.8
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Connections",
    "a handler is cancelled while its transaction begins",
    "its connection is cut, none comes back half begun",
)
async def test_a_transaction_that_is_cancelled_in_its_beginning_leaves_nothing_in_the_pool(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    handlers = """
    @handler("write", transaction=True)
    async def write(job: Job, connection: asyncpg.Connection) -> int:
        return await connection.fetchval("select 1")
    """
    async with proxied(database.url) as wire:
        worker = await daemon(handlers, pool_database_url=wire.url, pool_size=1)
        await end_of(connection, await enqueue(connection, "write", {}))
        wire.delay = 1.5
        job = await enqueue(connection, "write", {})
        await aeventually(lambda: is_running(connection, job))
        await connection.execute("select howdah.cancel($1)", job)
        figures.faults += 1
        assert (await end_of(connection, job))["state"] == "cancelled"
        wire.delay = 0.0
        began = time.monotonic()
        assert (await end_of(connection, await enqueue(connection, "write", {})))["state"] == "completed"
        figures.recovered(time.monotonic() - began)
        figures.jobs += 3
        assert not [line for line in worker.logs() if line.get("level") == "error"], worker.output()
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Connections", "the ack of a failed attempt takes longer than its backoff", "it is tried again when it is due"
)
async def test_a_retry_whose_ack_comes_late_is_not_forgotten(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    handlers = """
    @handler("flaky", backoff=lambda attempt: 0.1)
    async def flaky(job: Job) -> None:
        if job.attempt == 1:
            raise ConnectionError
    """
    async with proxied(database.url) as wire:
        worker = await daemon(handlers, url=wire.url)
        await end_of(connection, await enqueue(connection, "flaky", {}), timeout=20)
        wire.delay, wire.delayed = 0.5, frozenset({"ack"})
        figures.faults += 1
        job = await enqueue(connection, "flaky", {})
        began = time.monotonic()
        assert (await end_of(connection, job, timeout=20))["attempt"] == 2
        figures.jobs += 2
        figures.recovered(time.monotonic() - began)
        # Twice half a second for each of the two acks; nobody looks by himself before ten.
        assert time.monotonic() - began < 5
        wire.delay = 0.0
        assert await worker.stop() == 0


async def is_running(connection: asyncpg.Connection, job: int) -> bool:
    return await state_of(connection, job) == "running"
