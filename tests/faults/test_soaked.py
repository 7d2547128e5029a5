"""What soaks have found: an alarm that rang before its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.facts import end_of
from support.jobs import enqueue
from support.proxy import proxied

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures


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
