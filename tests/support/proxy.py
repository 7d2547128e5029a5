"""A wire that can be broken in every way that wires break: a TCP proxy before PostgreSQL that does as it is told, or at random.

Connections are told apart by their names (`claim`, `ack`, …; see wire_words); a fault is done to those that are named, or to all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from support.wire_words import Answers, Question, Questions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: close sends RST
#: How long a server goes on with a client that has vanished, in seconds: what its keepalives are set to.
SERVER_NOTICES = 1.0


@dataclass(eq=False)
class Link:
    """One connection through the wire."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    questions: Questions = field(default_factory=Questions)
    answers: Answers = field(default_factory=Answers)
    #: What is said vanishes, and the sockets stay open.
    loses_questions: bool = False
    loses_answers: bool = False
    #: What was asked last, how many rows of the answer have come, and what is to be done to the answer.
    asked: str = ""
    rows: int = 0
    trap: Trap | None = None
    late: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.questions.name


@dataclass(frozen=True)
class Trap:
    """A fault that waits for a statement: the first that has `sql` in it, on a connection of this name (None: any)."""

    sql: str
    #: `reply`: it is done, and its answer never comes. `rows`: the wire breaks in the middle of the answer's rows.
    #: `arguments`: it breaks in the middle of the question's arguments. `sync`: just before the word that commits.
    #: `late`: it reaches the server only after `seconds`, whoever has hung up since, and its answer never comes.
    what: str
    name: str | None = None
    #: After so many rows, or for questions of at least so many bytes.
    least: int = 1
    #: The wire stays open, and nothing comes any more; else it is reset.
    silent: bool = False
    seconds: float = 0.0


class Proxy:
    """Hands bytes on between clients and the server of `url`, until the wire is broken."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._links: list[Link] = []
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
        #: While True what is said on a connection that is made now vanishes, and so does its end.
        self.swallowing = False
        #: Seconds for which every message is held; of these names, or of all.
        self.delay, self.delayed = 0.0, frozenset[str]()
        self.traps: list[Trap] = []
        self.cuts = 0
        #: How many traps have sprung.
        self.sprung = 0

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
        self.heal()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()

    # -- faults

    def names(self) -> set[str]:
        """The connections that are there."""
        return {link.name for link in self._links}

    def cut(self, *names: str) -> int:
        """Break connections, as a dying router does: no goodbye; gives how many."""
        links = self._of(names)
        for link in links:
            self._break(link)
        return len(links)

    def half_open(self, *names: str, questions: bool = True, answers: bool = True) -> int:
        """Let vanish what is said on connections that are there now, for good, and leave their sockets open; gives how many."""
        links = self._of(names)
        for link in links:
            link.loses_questions |= questions
            link.loses_answers |= answers
        return len(links)

    def blackhole(self) -> None:
        """Swallow everything, on connections that are made from now on, too, until healed."""
        self.swallowing = True
        self.half_open()

    def hold(self, seconds: float, *names: str) -> None:
        """Hold every message for so long, until healed."""
        self.delay, self.delayed = seconds, frozenset(names)

    def heal(self) -> None:
        """Do no more harm. What has vanished stays so: the connections that lost it are not what they were."""
        self.refusing = self.swallowing = False
        self.delay, self.traps = 0.0, []
        self.lose_answers = self.lose_questions = 0.0

    def _of(self, names: tuple[str, ...]) -> list[Link]:
        return [link for link in self._links if not names or link.name in names]

    # -- the wire

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
        link = Link(writer, upstream_writer, loses_questions=self.swallowing, loses_answers=self.swallowing)
        self._links.append(link)
        for pump in (self._pump_questions(reader, link), self._pump_answers(upstream_reader, link)):
            task = asyncio.ensure_future(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump_questions(self, source: asyncio.StreamReader, link: Link) -> None:
        try:
            while data := await source.read(1 << 16):
                said = link.questions.cut(data)
                await self._wait_for(link)
                if self._random.random() < self.lose_questions:
                    return
                for question in said:
                    if not self._ask(question, link):
                        return
                await link.server.drain()
        except OSError:
            pass
        finally:
            if link.late:
                await asyncio.sleep(link.trap.seconds if link.trap is not None else 0)
                link.server.write(b"".join(data for data in link.late if data[:1] != b"X"))
                link.loses_questions = True
            if link.loses_questions:  # the server goes on for a while with a client whose end it has not heard of
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(SERVER_NOTICES)
            self._break(link)

    def _ask(self, question: Question, link: Link) -> bool:
        """Hand a message on; False: the wire breaks here."""
        if link.loses_questions:
            return True
        data = question.data
        if question.sql is not None:
            link.asked, link.rows, link.trap = question.sql, 0, None
            trap = next((trap for trap in self.traps if _fits(trap, link, len(data))), None)
            if trap is not None:
                self.traps.remove(trap)
                self.sprung += 1
                link.trap = trap
                if trap.what == "late":
                    link.loses_answers = True
                if trap.what == "arguments":
                    link.server.write(data[: len(data) // 2])
                    return self._fall_silent(link, trap)
        elif link.trap is not None and link.trap.what == "sync" and data[:1] == b"S":
            return self._fall_silent(link, link.trap)
        if link.trap is not None and link.trap.what == "late":
            link.late.append(data)
            return True
        link.server.write(data)
        return True

    async def _pump_answers(self, source: asyncio.StreamReader, link: Link) -> None:
        try:
            while data := await source.read(1 << 16):
                said = link.answers.cut(data)
                await self._wait_for(link)
                if self._random.random() < self.lose_answers:
                    return
                if self.lose_answers_with is not None and any(self.lose_answers_with in answer for answer in said):
                    return
                for answer in said:
                    if not self._answer(answer, link):
                        return
                await link.client.drain()
        except OSError:
            pass
        finally:
            if not link.loses_answers:  # else the client does not hear of the server's end either
                self._break(link)

    def _answer(self, answer: bytes, link: Link) -> bool:
        """Hand a message on; False: the wire breaks here."""
        if link.loses_answers:
            return True
        trap, kind = link.trap, answer[:1]
        if trap is not None and trap.what == "reply":
            # 'Z': the server is ready for more, so what was asked is done and committed.
            return kind != b"Z" or self._fall_silent(link, trap)
        if trap is not None and trap.what == "rows" and kind == b"D":
            link.rows += 1
            if link.rows > trap.least:
                return self._fall_silent(link, trap)
        if kind != b"A" or not self.deaf:
            link.client.write(answer)
        return True

    async def _wait_for(self, link: Link) -> None:
        if self.delay and (not self.delayed or link.name in self.delayed):
            await asyncio.sleep(self.delay)

    def _fall_silent(self, link: Link, trap: Trap) -> bool:
        link.loses_questions = link.loses_answers = trap.silent
        return trap.silent

    def _break(self, link: Link) -> None:
        if link not in self._links:
            return
        self._links.remove(link)
        self.cuts += 1
        for writer in (link.client, link.server):
            with contextlib.suppress(OSError, AttributeError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


def _fits(trap: Trap, link: Link, size: int) -> bool:
    return (
        trap.sql in link.asked and trap.name in {None, link.name} and (trap.what != "arguments" or size >= trap.least)
    )


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """Put a wire before a server for the length of a `with`."""
    proxy = Proxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
