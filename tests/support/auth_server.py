"""The demonstration's auth server, with faults: it can hold a request before or after it has made the user, or answer in its own words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from demo.auth_server import AuthServer

if TYPE_CHECKING:
    from collections.abc import Iterable


class FaultyAuthServer(AuthServer):
    """Each fault is for users whose e-mail begins with the word that was given."""

    def __init__(self) -> None:
        super().__init__()
        self.hold_before: set[str] = set()
        self.hold_after: set[str] = set()
        #: What the server answers, e-mail's beginning → (status, body, headers); each once for every entry.
        self.answers: dict[str, list[tuple[int, Any, dict[str, str]]]] = {}
        #: The e-mails of those who wait.
        self.held: list[str] = []
        self._free = asyncio.Event()

    def let_go(self) -> None:
        """Hold nobody any more."""
        self.hold_before.clear()
        self.hold_after.clear()
        self._free.set()

    async def before(self, user: dict[str, Any]) -> web.Response | None:
        """Answer in the server's place, or wait."""
        for word, answers in self.answers.items():
            if user["email"].startswith(word) and answers:
                status, body, headers = answers.pop(0)
                return web.json_response(body, status=status, headers=headers)
        await self._wait(user, self.hold_before)
        return None

    async def after(self, user: dict[str, Any]) -> web.Response | None:
        """Wait."""
        await self._wait(user, self.hold_after)
        return None

    async def _wait(self, user: dict[str, Any], words: Iterable[str]) -> None:
        if any(user["email"].startswith(word) for word in words):
            self.held.append(user["email"])
            await self._free.wait()
