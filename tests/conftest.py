"""What every test may ask for: a database of its own, with the engine's schema, and connections to it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.cluster import Cluster, Database, connect_to, new_database

from howdah.errors import HowdahError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import asyncpg

    Connect = Callable[..., Awaitable[asyncpg.Connection]]


def pytest_configure(config: pytest.Config) -> None:
    """Start one server for the whole run, from the main thread of the process that controls the xdist workers."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    cluster = Cluster()
    config.add_cleanup(cluster.stop)
    try:
        cluster.start()
    except HowdahError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    """A new database with the engine's schema: `.url` and `.name`."""
    async with new_database() as database:
        yield database


@pytest.fixture
async def connect(database: Database) -> AsyncIterator[Connect]:
    """Make a connection to the test's database, as often as it is called; jsonb is Python's dicts and lists."""
    async with AsyncExitStack() as stack:

        async def connect(**options: Any) -> asyncpg.Connection:
            connection = await connect_to(database, **options)
            stack.callback(connection.terminate)
            return connection

        yield connect


@pytest.fixture
async def connection(connect: Connect) -> asyncpg.Connection:
    """A connection to the test's database."""
    return await connect()
