"""A real HTTP server on loopback, whose pages are the test's functions."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Web:
    """Answers for the paths in `pages`, and keeps the path of every request in `asked`."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.port = port
        self.pages: dict[str, Page] = {}
        self.asked: list[str] = []

    def page(self, path: str, body: bytes = b"", *, status: int = 200, **headers: str) -> str:
        """Put a page that always says the same, and give its address. Headers by name, _ for -."""

        async def answer(_request: web.Request) -> web.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(body=body, status=status, headers=named)

        return self.put(path, answer)

    def put(self, path: str, page: Page) -> str:
        """Put a page that answers as it likes, and give its address."""
        self.pages[path] = page
        return self.address + path


@asynccontextmanager
async def website() -> AsyncIterator[Web]:
    """Run a server; its port is the system's choice."""
    site: Web

    async def serve(request: web.Request) -> web.StreamResponse:
        site.asked.append(request.path)
        page = site.pages.get(request.path)
        return await page(request) if page else web.Response(status=404)

    runner = web.AppRunner(_application(serve), shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site = Web(runner.addresses[0][1])
    try:
        yield site
    finally:
        await runner.cleanup()


def _application(serve: Page) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", serve)
    return application
