"""The one PostgreSQL of a test run, and the databases that the tests clone in it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A superuser's address of a running server: the tests then use that one, whatever its release.
SERVER = "HOWDAH_TEST_DATABASE_URL"
# The controlling process tells the xdist workers, which inherit its environment.
_TEMPLATE = "HOWDAH_TEST_TEMPLATE_URL"

_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_wal_size": "4GB",
    "shared_buffers": "256MB",
}


@dataclass(frozen=True, slots=True)
class Database:
    """A database of a test's own."""

    url: str
    name: str


class Cluster:
    """A server, ours or a given one, with a template database that holds the engine's schema."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._server: EmbeddedPostgres | None = None
        self._template: Database | None = None

    def start(self) -> None:
        """Start the server unless one was given, and make the template. Called once, in the controlling process."""
        given = os.environ.get(SERVER)
        if given is None:
            self._folder = Path(tempfile.mkdtemp(prefix="howdah-tests-"))
            self._folder.chmod(0o711)  # the server may run as another user
            self._server = EmbeddedPostgres(self._folder / "postgres", settings=_SETTINGS)
            self._server.start()
            given = self._server.url("postgres")
        self._template = asyncio.run(_make_template(given))
        os.environ[_TEMPLATE] = self._template.url

    def stop(self) -> None:
        """Leave nothing behind."""
        os.environ.pop(_TEMPLATE, None)
        if self._server is not None:
            self._server.stop()
        elif self._template is not None:
            asyncio.run(_drop(self._template))
        if self._folder is not None:
            shutil.rmtree(self._folder)


@asynccontextmanager
async def new_database(*, empty: bool = False) -> AsyncIterator[Database]:
    """Clone the template (`empty`: a database without the engine's schema), and drop the clone at the end."""
    template_url = os.environ[_TEMPLATE]
    template = "template0" if empty else urlsplit(template_url).path.lstrip("/")
    name = f"howdah_test_{secrets.token_hex(6)}"
    database = Database(_url_of(template_url, name), name)
    await _execute(template_url, f'create database "{name}" template "{template}"')
    try:
        yield database
    finally:
        await _drop(database)


async def connect_to(database: Database, **options: Any) -> asyncpg.Connection:
    """Connect; jsonb is Python's dicts and lists."""
    connection = await asyncpg.connect(database.url, **options)
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return connection


async def _make_template(server: str) -> Database:
    name = f"howdah_template_{secrets.token_hex(6)}"
    template = Database(_url_of(server, name), name)
    await _execute(server, f'create database "{name}" template template0')
    connection = await asyncpg.connect(template.url)
    try:
        await migrate(connection)
    except BaseException:
        await connection.close()
        await _drop(template)
        raise
    await connection.close()
    return template


async def _drop(database: Database) -> None:
    await _execute(database.url, f'drop database if exists "{database.name}" with (force)')


async def _execute(url: str, statement: str) -> None:
    """Run a statement about databases; it runs from outside of all of them."""
    connection = await asyncpg.connect(_url_of(url, "postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _url_of(url: str, database: str) -> str:
    return urlsplit(url)._replace(path=f"/{database}").geturl()
