"""Databases for tests: a template with the schema, made once, and clones of it, a few milliseconds each."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from howdah.database import Line, set_codecs
from howdah.migrate import migrate
from howdah.registry import registry
from howdah.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

#: For servers that live as long as a test run: nothing of theirs needs to survive a crash.
SERVER_SETTINGS = {
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

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect; jsonb travels as Python's dicts and lists. The options are asyncpg's."""
        connection: asyncpg.Connection = await asyncpg.connect(self.url, **options)
        await set_codecs(connection)
        return connection


async def make_template(server: str, name: str, migrations: Iterable[Path] = ()) -> Database:
    """Make a database with the engine's schema and then the application's, from its folders of migrations."""
    template = Database(url_of(server, name), name)
    await execute(server, f'create database "{name}" template template0')
    try:
        connection = await asyncpg.connect(template.url)
        try:
            await migrate(connection)
            for number, folder in enumerate(migrations):
                await migrate(connection, source=f"app{number or ''}", folder=folder)
        finally:
            await connection.close()
    except BaseException:
        await drop(template)
        raise
    return template


async def clone(template_url: str, *, empty: bool = False) -> Database:
    """Make a copy of the template; `empty`: a database without anything in it."""
    template = "template0" if empty else urlsplit(template_url).path.lstrip("/")
    name = f"howdah_test_{secrets.token_hex(6)}"
    await execute(template_url, f'create database "{name}" template "{template}"', copying=True)
    return Database(url_of(template_url, name), name)


async def register_kinds(database: Database) -> None:
    """Tell the database of the handlers that have been imported, as a deploy does: enqueue then knows their fields and defaults."""
    if registry.kinds:
        line = Line("testing", database.url)
        try:
            await Store(line).register(registry.registrations(), registry.revision())
        finally:
            await line.close()


async def drop(database: Database) -> None:
    """Drop a database, whoever is connected."""
    await execute(database.url, f'drop database if exists "{database.name}" with (force)')


@asynccontextmanager
async def cloned(template_url: str, *, empty: bool = False) -> AsyncIterator[Database]:
    """Lend a clone for the length of a `with`."""
    database = await clone(template_url, empty=empty)
    try:
        yield database
    finally:
        await drop(database)


def url_of(url: str, database: str) -> str:
    """Give the address of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()


async def execute(url: str, statement: str, *, copying: bool = False) -> None:
    """Run a statement about databases; it runs from outside of all of them. `copying`: of a template, the quickest way."""
    connection = await asyncpg.connect(url_of(url, "postgres"))
    try:
        # By default every page goes through the WAL: twice the time. Before PostgreSQL 15 there was no other way than this.
        fast = copying and connection.get_server_version() >= (15,)
        await connection.execute(f"{statement} strategy file_copy" if fast else statement)
    finally:
        await connection.close()
