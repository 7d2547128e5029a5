"""Beats after an outage: one that waited for the database says nothing of now, and nobody waits for the next."""

from __future__ import annotations

import asyncio
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
