"""A wire that waits: a proxy before PostgreSQL that withholds one statement, or its answer, until a test has killed who asked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STARTUP = 196608  # the protocol's version 3.0: from here on every message has a type


class Hold:
    """One statement to be withheld, known by words of its text: as a question, or as an answer that has `containing` in it."""

    def __init__(self, words: str, containing: bytes | None) -> None:
        self.words = words.encode()
        self.containing = containing
        self._reached = asyncio.Event()

    @property
    def is_answer(self) -> bool:
        return self.containing is not None

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    def reach(self) -> None:
        self._reached.set()

    async def reached(self, timeout: float = 15.0) -> None:  # noqa: ASYNC109 - it is a test's patience
        """Wait until it is withheld: the question did not reach the server, or what it asked for has been committed there."""
        try:
            async with asyncio.timeout(timeout):
                await self._reached.wait()
        except TimeoutError:
            raise AssertionError(f"{self.words!r} was not said within {timeout:g} s") from None


class HoldingProxy:
    """Hands messages on between clients and the server of `url`, but for what is held; each hold catches once."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._holds: list[Hold] = []
        self._wires: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address that leads through the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        account = self._upstream.netloc.rpartition("@")[0]
        return self._upstream._replace(netloc=f"{account}@127.0.0.1:{port}").geturl()

    def hold_question(self, words: str) -> Hold:
        """Withhold the next statement that has these words in it: the server will never hear of it."""
        self._holds.append(Hold(words, None))
        return self._holds[-1]

    def hold_answer(self, words: str, containing: bytes = b"") -> Hold:
        """Let the server do the next such statement whose answer has these bytes in it, and withhold the answer."""
        self._holds.append(Hold(words, containing))
        return self._holds[-1]

    def match(self, text: bytes, *, answer: bool) -> Hold | None:
        """Give the hold that waits for a statement."""
        waiting = (hold for hold in self._holds if not hold.is_reached and hold.is_answer == answer)
        return next((hold for hold in waiting if hold.words in text), None)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for wire in self._wires:
            wire.cancel()
        await asyncio.gather(*self._wires, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._upstream.hostname or "127.0.0.1", self._upstream.port or 5432
        upstream = await asyncio.open_connection(host, port)
        wire = asyncio.ensure_future(_Wire(self, (reader, writer), upstream).run())
        self._wires.add(wire)
        wire.add_done_callback(self._wires.discard)


class _Wire:
    """One connection; it ends when either side does, and what is withheld then is gone."""

    def __init__(
        self,
        proxy: HoldingProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._statements: dict[bytes, bytes] = {}
        # While set: an answer is collected, to be judged when it is whole.
        self._hold: Hold | None = None

    async def run(self) -> None:
        pumps = [asyncio.ensure_future(pump) for pump in (self._hand_questions(), self._hand_answers())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for _, writer in (self._client, self._server):
                writer.transport.abort()

    async def _hand_questions(self) -> None:
        reader, writer = self._client[0], self._server[1]
        while True:  # what comes before the start has no type: it may ask for TLS first
            length = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length, "big") - 4)
            writer.write(length + body)
            if int.from_bytes(body[:4], "big") == _STARTUP:
                break
        while True:
            kind, body, message = await _message(reader)
            text = self._text(kind, body)
            if text is not None and (hold := self._proxy.match(text, answer=False)):
                hold.reach()
                await reader.read()  # until the client is gone
                return
            if text is not None:
                self._hold = self._proxy.match(text, answer=True)
            writer.write(message)

    async def _hand_answers(self) -> None:
        reader, writer = self._server[0], self._client[1]
        answer = await reader.readexactly(1)
        if answer in b"NS":  # to the question for TLS
            assert answer == b"N", "the server of these tests speaks no TLS"
            writer.write(answer)
            answer = b""
        collected = b""
        while True:
            kind, _, message = await _message(reader, begun=answer)
            answer = b""
            if self._hold is None:
                writer.write(message)
                continue
            collected += message
            if kind != b"Z":  # the server is ready for the next question: the answer is whole, and its work committed
                continue
            hold, self._hold = self._hold, None
            if hold.containing is not None and hold.containing in collected and not hold.is_reached:
                hold.reach()
                await reader.read()  # until the server is gone
                return
            writer.write(collected)
            collected = b""

    def _text(self, kind: bytes, body: bytes) -> bytes | None:
        """Give the text of the statement that a message executes."""
        if kind == b"Q":
            return body
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text
        if kind == b"B":
            return self._statements[body.split(b"\0", 2)[1]]
        return None


async def _message(reader: asyncio.StreamReader, begun: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """Read one message: its type, its body, and all of it."""
    head = begun + await reader.readexactly(5 - len(begun))
    body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
    return head[:1], body, head + body


@asynccontextmanager
async def holding(url: str) -> AsyncIterator[HoldingProxy]:
    """Put the proxy before a server for the length of a `with`."""
    proxy = HoldingProxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
