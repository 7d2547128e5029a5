"""What tests of the application may ask for: a database that has its schema, too, and daemons that run its handlers."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import asyncpg
import pytest
from support.daemon import Daemon
from support.logins import login

from demo.bot_api import BotApi
from handlers.settings import settings
from handlers.telegram import telegram
from howdah.migrate import migrate
from howdah.testing.databases import Database, clone, cloned, drop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from handlers.telegram import Telegram

REPOSITORY = Path(__file__).parents[2]
APP = REPOSITORY / "sql" / "app"
# A test's daemon has a handlers module of its own in its folder; this one opens into the application's.
_HANDLERS = f"""
__path__ = [{str(REPOSITORY / "handlers")!r}]
import handlers.{{modules}}
"""


class StartApp(Protocol):
    """Start a worker of the application: `modules` of handlers/, and the settings, APP_… and HOWDAH_…, by name."""

    async def __call__(self, *modules: str, ready: bool = True, **settings: object) -> Daemon: ...


@pytest.fixture(scope="session")
def app_template() -> Iterator[Database]:
    """A database with the engine's schema and the application's; made once in each process of the run."""

    async def make() -> Database:
        template = await clone(os.environ["HOWDAH_TEST_TEMPLATE_URL"])
        connection = await asyncpg.connect(template.url)
        await migrate(connection, source="app", folder=APP)
        await connection.close()
        return template

    template = asyncio.run(make())
    yield template
    asyncio.run(drop(template))


@pytest.fixture
async def database(app_template: Database) -> AsyncIterator[Database]:
    """A new database with the application's schema."""
    async with cloned(app_template.url) as database:
        yield database


@pytest.fixture
async def handlers_url(database: Database) -> AsyncIterator[str]:
    """The address of a login that has the rights of the application's handlers, nothing more."""
    async with login(database, "app_handlers") as handlers:
        yield handlers.url


@pytest.fixture
async def app_daemon(database: Database, handlers_url: str, tmp_path: Path) -> AsyncIterator[StartApp]:
    """Start workers of the application; their handlers have a login of their own. All are gone at the end."""
    daemons: list[Daemon] = []

    async def start(*modules: str, ready: bool = True, **settings: object) -> Daemon:
        daemon = Daemon(
            tmp_path / f"daemon{len(daemons)}",
            url=database.url,
            handlers="".join(_HANDLERS.format(modules=module) for module in modules),
            environment={
                "HOWDAH_LEASE_TTL": "2",
                "HOWDAH_POOL_DATABASE_URL": handlers_url,
                "APP_STORAGE_URL": (tmp_path / "storage").as_uri(),
                **{name.upper(): str(value) for name, value in settings.items()},
            },
        )
        daemons.append(daemon)
        return await daemon.ready() if ready else daemon

    yield start
    for daemon in daemons:
        daemon.reap()


@pytest.fixture
async def bot() -> AsyncIterator[BotApi]:
    """A Bot API server on loopback."""
    async with BotApi().running() as bot:
        yield bot


@pytest.fixture
async def bot_client(bot: BotApi, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Telegram]:
    """The handlers' client of that server, with little patience."""
    monkeypatch.setenv("APP_TELEGRAM_URL", bot.url)
    monkeypatch.setenv("APP_TELEGRAM_TIMEOUT", "0.3")
    settings.cache_clear()
    async with asynccontextmanager(telegram)() as client:
        yield client
    settings.cache_clear()
