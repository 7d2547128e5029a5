"""A server that is nearly PostgreSQL: one that refuses LISTEN on the wire, or whose advisory locks and notifications are not there."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

LOCKS = ("pg_try_advisory_xact_lock(int, int)", "pg_advisory_xact_lock(int, int)", "pg_advisory_xact_lock(bigint)")
NOTIFICATIONS = ("pg_notify(text, text)",)


async def take_away(connection: asyncpg.Connection, *functions: str) -> None:
    """Have a database refuse functions of the server's to all but superusers."""
    for function in functions:
        await connection.execute(f"revoke execute on function pg_catalog.{function} from public")


@asynccontextmanager
async def without_listen(url: str) -> AsyncIterator[str]:
    """Give an address at which LISTEN is not understood: a word on the way to the server is changed into one that there is not."""
    upstream = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.replace(b'LISTEN "', b'LUSTEN "'))
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(upstream.hostname, upstream.port)
        try:
            await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            server_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield upstream._replace(netloc=f"{upstream.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
    finally:
        server.close()
