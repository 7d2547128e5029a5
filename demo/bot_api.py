"""A Bot API server on loopback: it keeps to Telegram's protocol and a rate, keeps books, and misbehaves when it is told to."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Act(Enum):
    """What the server does with a request instead of delivering the message and saying so."""

    BREAK = "answer 500, nothing delivered"
    FLOOD = "answer 429 with retry_after, nothing delivered"
    GATEWAY = "deliver, and let a gateway answer 504"
    HOLD = "deliver, and answer when `released` is set"
    CUT = "deliver, and cut the connection without an answer"
    DROP = "cut the connection, nothing delivered"
    ECHO = "answer 500 with the token in its description"


@dataclass(frozen=True, slots=True)
class Request:
    """One call of sendMessage: when it came (time.monotonic), and whether the chat got the text."""

    at: float
    token: str
    chat_id: str
    text: str
    status: int
    delivered: bool


class BotApi:
    """One server for any number of bots. `rate` requests of a bot in any second are answered, those beyond get a 429."""

    def __init__(self, *, rate: float = 1e9, latency: float = 0.0, retry_after: float = 1) -> None:
        self.rate = rate
        self.latency = latency
        self.retry_after = retry_after
        #: The books: every request, in the order in which they came.
        self.requests: list[Request] = []
        #: Chats that have blocked the bot, and chats that do not exist.
        self.blocked: set[str] = set()
        self.missing: set[str] = set()
        #: What is done with the next requests for a chat.
        self.acts: defaultdict[str, deque[Act]] = defaultdict(deque)
        #: While it is not set, everybody waits for an answer: what was sent is delivered.
        self.released = asyncio.Event()
        self.holding = 0
        self.url = ""
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[BotApi]:
        """Serve on loopback; `url` is the address."""
        application = web.Application()
        application.router.add_post("/bot{token}/sendMessage", self._send_message)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            self.released.set()
            await runner.cleanup()

    # -- the books

    @property
    def delivered(self) -> Counter[str]:
        """How many messages each chat got."""
        return Counter(request.chat_id for request in self.requests if request.delivered)

    def most_in_a_second(self, token: str | None = None) -> int:
        """Give the largest number of requests (of one bot) in any second, wherever it begins."""
        times = [request.at for request in self.requests if token is None or request.token == token]
        return max((place + 1 - bisect_right(times, at - 1.0) for place, at in enumerate(times)), default=0)

    # -- the protocol

    async def _send_message(self, request: web.Request) -> web.StreamResponse:
        at, token, asked = monotonic(), request.match_info["token"], await request.json()
        chat_id, text = str(asked.get("chat_id", "")), str(asked.get("text", ""))
        act = self.acts[chat_id].popleft() if self.acts[chat_id] else None
        status, answer = self._judge(at, token, chat_id, text, act)
        delivered = status == 200 or act in {Act.GATEWAY, Act.HOLD, Act.CUT}
        self.requests.append(Request(at, token, chat_id, text, status, delivered))
        if self.latency:
            await asyncio.sleep(self.latency)
        if act in {Act.CUT, Act.DROP} and request.transport is not None:
            request.transport.abort()
        if act is Act.HOLD:
            self.holding += 1
            try:
                await self.released.wait()
            finally:
                self.holding -= 1
        if isinstance(answer, str):
            return web.Response(status=status, text=answer, content_type="text/html")
        return web.json_response(answer, status=status)

    def _judge(
        self, at: float, token: str, chat_id: str, text: str, act: Act | None
    ) -> tuple[int, dict[str, Any] | str]:
        times = self._times[token]
        while times and times[0] <= at - 1.0:
            times.popleft()
        if len(times) >= self.rate or act is Act.FLOOD:
            return _refusal(429, f"Too Many Requests: retry after {self.retry_after}", retry_after=self.retry_after)
        times.append(at)
        if act is not None and act in _ANSWERS:
            status, answer = _ANSWERS[act]
            return status, answer.format(token=token)
        if chat_id in self.missing:
            return _refusal(400, "Bad Request: chat not found")
        if chat_id in self.blocked:
            return _refusal(403, "Forbidden: bot was blocked by the user")
        return 200, {
            "ok": True,
            "result": {"message_id": len(self.requests) + 1, "chat": {"id": chat_id}, "text": text},
        }


_ANSWERS = {
    Act.BREAK: (500, "<html><h1>500 Internal Server Error</h1></html>"),
    Act.DROP: (500, ""),
    Act.ECHO: (500, '{{"ok": false, "description": "Internal Server Error at /bot{token}/sendMessage"}}'),
    Act.GATEWAY: (504, "<html><h1>504 Gateway Time-out</h1></html>"),
}


def _refusal(status: int, description: str, **parameters: float) -> tuple[int, dict[str, Any]]:
    answer: dict[str, Any] = {"ok": False, "error_code": status, "description": description}
    return status, answer | ({"parameters": parameters} if parameters else {})
