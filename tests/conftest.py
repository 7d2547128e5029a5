"""What every test may ask for: a database of its own, with the engine's schema, connections to it, and daemons."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.cluster import Cluster, Database, connect_to, new_database
from support.daemon import NOOP, Daemon
from support.figures import Figures, write

from howdah.errors import HowdahError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from pathlib import Path

    import asyncpg

    Connect = Callable[..., Awaitable[asyncpg.Connection]]
    StartDaemon = Callable[..., Awaitable[Daemon]]


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a test of a fault counted, if it passed."""
    report = yield
    if report.when == "call" and report.passed and (mark := item.get_closest_marker("fault")):
        if len(mark.args) != 3:
            raise pytest.UsageError(f"{item.nodeid}: fault(part, fault, promise)")
        write(item, getattr(item, "funcargs", {}).get("figures", Figures()))
    return report


@pytest.fixture
def figures() -> Figures:
    """What a test of a fault counts, for the table in docs/reliability.md."""
    return Figures()


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


@pytest.fixture
def daemon(database: Database, tmp_path: Path) -> Iterator[StartDaemon]:
    """Start a daemon on the test's database: `await daemon(handlers, *arguments, queues="default:2", …)`.

    Other keywords are settings. `ready=False`: return at once. `url`: another database.
    """
    daemons: list[Daemon] = []

    async def start(
        handlers: str = NOOP, *arguments: str, ready: bool = True, url: str | None = None, **settings: Any
    ) -> Daemon:
        daemon = Daemon(
            tmp_path / f"daemon{len(daemons)}",
            url=url or database.url,
            handlers=handlers,
            arguments=arguments,
            environment={f"HOWDAH_{name.upper()}": str(value) for name, value in settings.items()},
        )
        daemons.append(daemon)
        return await daemon.ready() if ready else daemon

    yield start
    for daemon in daemons:
        daemon.reap()
