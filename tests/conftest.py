"""What every test may ask for: a database of its own, with the engine's schema, and connections to it."""

from __future__ import annotations

import signal
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
    # Who was started in the background ignores interrupts, and so would the commands that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    cluster = Cluster()
    config.add_cleanup(cluster.stop)
    try:
        cluster.start()
    except HowdahError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long ones their time."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


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
