"""Connections that are lent: the handlers' (a pool of their own, so that no handler can keep the engine from the database) or a client's."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import asyncpg

from howdah.database import CLOSE_TIMEOUT, CONNECT_TIMEOUT, STATEMENTS, set_codecs, settings_for, statements_kept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("howdah.pool")

# What asyncpg's own reset leaves behind, before it and after it: whose rights the session has, temporary tables, and what
# sequences gave last.
_IDENTITY, _LEFT = "set session authorization default; reset role;", "discard temp; discard sequences;"


class HandlerPool:
    """Lends connections; the first borrower opens the pool, and connections are made as they are needed."""

    def __init__(
        self, url: str, size: int, *, name: str = "howdah handler", statement_cache_size: int = STATEMENTS
    ) -> None:
        self._url = url
        self._size = size
        self._name = name
        self._statement_cache_size = statement_cache_size
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection for the length of a `with`; what it leaves open is undone when it comes back."""
        pool = self._pool or await self._open()
        connection = await pool.acquire()
        try:
            yield cast("asyncpg.Connection", connection)  # the pool's proxy is one in all but its type
        finally:
            try:
                # What is open is undone, which needs an answer. Without one the connection is cut, and the pool makes another.
                await pool.release(connection, timeout=CLOSE_TIMEOUT)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.debug("a connection was cut", extra={"error": repr(error)})

    async def close(self) -> None:
        """Hang up, politely where that is possible."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                kept = await statements_kept(self._url, self._statement_cache_size)
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._size,
                    init=_prepare,
                    reset=_reset,
                    timeout=CONNECT_TIMEOUT,
                    statement_cache_size=kept,
                    server_settings={"application_name": self._name} | settings_for(self._url),
                )
            return self._pool


async def _prepare(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT):
        await set_codecs(connection)


async def _reset(connection: asyncpg.Connection) -> None:
    """Leave nothing of one borrower to the next. Not `discard all`: the statements that are kept prepared would go, too."""
    await connection.execute(f"{_IDENTITY}\n{connection.get_reset_query()}\n{_LEFT}")
