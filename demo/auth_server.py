"""An auth server on loopback: what GoTrue's admin interface does to make and find users."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Json = dict[str, Any]


class AuthServer:
    """Users by e-mail. `before` and `after` stand around the making of one, for whoever wants to interfere."""

    def __init__(self) -> None:
        self.url = ""
        self.users: dict[str, Json] = {}
        #: The passwords that came, by e-mail; the interface never gives them out.
        self.passwords: dict[str, str] = {}
        #: How often somebody asked for a user to be made.
        self.asked = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port for the length of a `with`; `url` is the address."""
        app = web.Application()
        app.router.add_post("/admin/users", self._make)
        app.router.add_get("/admin/users", self._list)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            yield self
        finally:
            await runner.cleanup()

    def add(self, user: Json) -> Json:
        """Make a user, and give what may be told of them."""
        email = user["email"].lower()
        self.users[email] = {"id": str(uuid4()), "email": email, "user_metadata": user["user_metadata"]}
        self.passwords[email] = user["password"]
        return self.users[email]

    async def before(self, user: Json) -> web.Response | None:
        """Happens before a user is made; an answer given here is the answer."""

    async def after(self, user: Json) -> web.Response | None:
        """Happens when a user has been made and nobody has heard of it yet; an answer given here is the answer."""

    async def _make(self, request: web.Request) -> web.Response:
        self.asked += 1
        asked: Json = await request.json()
        answer = await self.before(asked)
        if answer is not None:
            return answer
        email = asked["email"].lower()
        if email in self.users:
            return _refusal("email_exists", "A user with this email address has already been registered")
        made = self.add(asked)
        return await self.after(asked) or web.json_response(made)

    async def _list(self, request: web.Request) -> web.Response:
        """Give a page of the users whose address has the filter's text in it."""
        word, page = request.query.get("filter", "").lower(), int(request.query.get("page", "1"))
        size = min(int(request.query.get("per_page", "50")), 3)  # a small page, so that there are several
        found = [user for email, user in self.users.items() if word in email]
        return web.json_response({"aud": "authenticated", "users": found[(page - 1) * size : page * size]})


def _refusal(code: str, message: str) -> web.Response:
    return web.json_response({"code": 422, "error_code": code, "msg": message}, status=422)
