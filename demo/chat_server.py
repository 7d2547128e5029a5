"""A chat endpoint on loopback, by the protocol that OpenAI's servers speak. It answers at once, and knows nothing."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from asyncio import Event
    from collections.abc import AsyncIterator


class ChatServer:
    """What it was asked, and how it is to answer from now on."""

    def __init__(self) -> None:
        self.url = ""
        #: The texts that it was asked about, summaries and outlines.
        self.asked: list[str] = []
        self.outlines_asked = 0
        self.tokens: set[str | None] = set()
        #: The answers to the next requests, (status, body, headers), before it answers by itself again.
        self.next: list[tuple[int, Any, dict[str, str]]] = []
        #: The most characters that it takes; and what it waits for before it gives a summary, or an outline.
        self.context = 1_000_000
        self.until: dict[str, Event] = {}

    async def complete(self, request: web.Request) -> web.Response:
        """Answer a request for a completion."""
        asked = await request.json()
        task, text = (message["content"] for message in asked["messages"])
        self.tokens.add(request.headers.get("Authorization"))
        self.asked.append(text)
        sort = "outline" if "outline" in task else "summary"
        self.outlines_asked += sort == "outline"
        if sort in self.until:
            await self.until[sort].wait()
        if self.next:
            status, body, headers = self.next.pop(0)
            return web.json_response(body, status=status, headers=headers)
        if len(text) > self.context:
            problem = f"This model's maximum context length is {self.context} characters."
            return web.json_response({"error": {"message": problem, "code": "context_length_exceeded"}}, status=400)
        said = _outline(text) if sort == "outline" else f"In short: {' '.join(text.split())[:80]}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return web.json_response({"object": "chat.completion", "model": asked["model"], "choices": [choice]})


@asynccontextmanager
async def chat_server() -> AsyncIterator[ChatServer]:
    """Run an endpoint; its `url` is for APP_CHAT_URL."""
    server = ChatServer()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_post("/v1/chat/completions", server.complete)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def _outline(text: str) -> str:
    titles = [line.removeprefix("## ") for line in text.split("\n") if line.startswith("## ")]
    modules = [{"title": f"About {title}", "summary": "", "lessons": [title]} for title in titles]
    return f"Here it is:\n```json\n{json.dumps({'modules': modules})}\n```"
