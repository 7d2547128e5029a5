"""Clocks that are wrong, and clocks that are set while work goes on."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.clocks import Clock, find_library
from support.daemon import Daemon
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.servers import connected, own_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

    from howdah.embedded import EmbeddedPostgres

pytestmark = pytest.mark.skipif(
    find_library() is None, reason="libfaketime is not installed: ./dev faults installs it"
)

TTL = 2
MINUTES = 600.0
DAY = 86400.0


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
async def server(tmp_path: Path, clock: Clock) -> AsyncIterator[EmbeddedPostgres]:
    """A server that goes by the test's clock."""
    async with own_server(tmp_path / "server", binaries=clock.binaries()) as server:
        yield server


@pytest.mark.fault("Time", "the server's clock is set ten minutes forward and back", "no lease is lost")
async def test_the_servers_clock_steps_and_no_living_worker_is_taken_for_dead(
    daemon: StartDaemon, server: EmbeddedPostgres, clock: Clock, figures: Figures
) -> None:
    async with connected(server) as connection:
        checker = await Checker(connection).install()
        workers = [await daemon(JOURNAL, url=server.url(), queues="default:10", lease_ttl=TTL) for _ in range(2)]
        await asyncio.sleep(2 * TTL)  # since when nobody is young any more, and would rescue
        long = [{"kind": "innocent", "payload": {"seconds": 8}}]
        await enqueue_many(connection, *long * 15)
        await aeventually(lambda: starts(connection, 15))
        for ahead in (MINUTES, 0.0, -MINUTES, 0.0):
            clock.set(ahead)
            figures.faults += 1
            began = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent", priority=10))
            figures.recovered(time.monotonic() - began)
            await asyncio.sleep(TTL)  # every worker looks for dead ones meanwhile
        await aeventually(lambda: is_empty(connection), timeout=20)
        await checker.check(figures=figures, steady=False)
        for worker in workers:
            assert not worker.log_events("rescued")
            assert not worker.log_events("lost lease")
            assert await worker.stop() == 0
        assert await connection.fetchval("select max(attempt) + max(crashes) from howdah.job_history") == 1


async def starts(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) >= $1 from public.journal where event = 'start'", count))
