"""A wire that can be cut: a TCP proxy before PostgreSQL that breaks connections when it is told to, or at random."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: close sends RST


class Proxy:
    """Hands bytes on between clients and the server of `url`, until the wire is cut."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._random = random.Random(7)  # noqa: S311 - the same faults in every run
        #: While True nobody gets through.
        self.refusing = False
        #: The share of the server's answers after which the wire breaks before they arrive.
        self.lose_answers = 0.0
        #: The share of the clients' words after which the wire breaks before they arrive.
        self.lose_questions = 0.0
        #: The wire breaks instead of handing on an answer that has these bytes in it.
        self.lose_answers_with: bytes | None = None
        #: While True no notification arrives: what a pooler that lends sessions does to them.
        self.deaf = False
        self.cuts = 0

    @property
    def url(self) -> str:
        """The address that leads through the wire."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        account = self._upstream.netloc.rpartition("@")[0]
        return self._upstream._replace(netloc=f"{account}@127.0.0.1:{port}").geturl()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection, as a dying router does: no goodbye."""
        for pair in list(self._pairs):
            self._break(pair)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        host, port = self._upstream.hostname or "127.0.0.1", self._upstream.port or 5432
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, upstream_writer)
        self._pairs.append(pair)
        for source, target, answers in ((reader, upstream_writer, False), (upstream_reader, writer, True)):
            pump = asyncio.ensure_future(self._pump(source, target, pair, answers=answers))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        frames = _Frames()
        try:
            while data := await source.read(1 << 16):
                if answers:
                    data = frames.cut(data, without=b"A" if self.deaf else b"")
                if self._random.random() < (self.lose_answers if answers else self.lose_questions):
                    return
                if answers and self.lose_answers_with is not None and self.lose_answers_with in data:
                    return
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            self._break(pair)

    def _break(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        if pair not in self._pairs:
            return
        self._pairs.remove(pair)
        self.cuts += 1
        for writer in pair:
            with contextlib.suppress(OSError, AttributeError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class _Frames:
    """The server's words, one message at a time; what is not whole yet is kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def cut(self, data: bytes, *, without: bytes) -> bytes:
        """Give the whole messages that have come, but none of the type `without`."""
        if not self._begun:
            self._begun = True
            if data in {b"N", b"S"}:  # the answer to the question for TLS; 'N' means no
                self._begun = data == b"S"
                return data
        self._rest += data
        said = b""
        while len(self._rest) >= 5 and len(self._rest) > (length := int.from_bytes(self._rest[1:5], "big")):
            message, self._rest = self._rest[: length + 1], self._rest[length + 1 :]
            said += message if message[:1] != without else b""
        return said


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """Put a wire before a server for the length of a `with`."""
    proxy = Proxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
