"""Servers of a test's own, which it may fill, starve or put out of time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from support.cluster import Database, connect_to

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg

#: What a server needs that is thrown away.
THROWN_AWAY = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "60"}


@asynccontextmanager
async def own_server(folder: Path, *, binaries: Path | None = None, **settings: str) -> AsyncIterator[EmbeddedPostgres]:
    """Run a server with a migrated database in `folder`, for the length of a `with`."""
    _open_the_way_to(folder)
    server = EmbeddedPostgres(folder / "postgres", binaries=binaries, settings=THROWN_AWAY | settings)
    await asyncio.to_thread(server.start)
    try:
        async with connected(server) as connection:
            await migrate(connection)
        yield server
    finally:
        await asyncio.to_thread(server.kill)


@asynccontextmanager
async def connected(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection to such a server."""
    connection = await connect_to(Database(server.url(), "postgres"))
    try:
        yield connection
    finally:
        connection.terminate()


def _open_the_way_to(folder: Path) -> None:
    """Let other users walk to it: the server may be one."""
    folder.mkdir(exist_ok=True)
    for parent in [folder, *folder.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o011)
