"""The HTTP port: metrics for Prometheus, health for whoever restarts or routes."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from howdah.errors import ConfigError, DatabaseUnavailableError
from howdah.vitals import GRACE, SWEEP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from howdah.metrics import Metrics
    from howdah.store import Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.endpoint")
#: What the HTTP library says.
strangers = logging.getLogger("howdah.endpoint.http")

#: How long an answer may wait for the database, in seconds: whoever asks has a deadline, too.
PATIENCE = 3.0
#: How long a connection may live, in seconds, and how many may at once: one more, and the oldest is closed. Each is answered once.
LIFE, CONNECTIONS = 10.0, 100
#: Between looks at how long they have lived, in seconds.
LOOK_INTERVAL = 1.0


class Endpoint:
    """Serves /metrics, /healthz, /readyz, /health/queue and /stats."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        admin_token: str | None,
        store: Store,
        vitals: Vitals,
        metrics: Metrics,
        fold: Callable[[], Awaitable[None]],
        ttl: float,
        hang_timeout: float,
    ) -> None:
        self._host = host
        self._port = port
        self._admin_token = admin_token
        self._store = store
        self._vitals = vitals
        self._metrics = metrics
        self._fold = fold
        self._ttl = ttl
        self._hang_timeout = hang_timeout
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        # When each came, oldest first.
        self._connections: list[tuple[float, web.RequestHandler]] = []
        #: Where it listens, once it does.
        self.address = ""

    async def open(self) -> None:
        """Begin to listen. Raises ConfigError when the address is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/healthz", self._serve_healthz)
        app.router.add_get("/readyz", self._serve_readyz)
        app.router.add_get("/health/queue", self._serve_queue_health)
        app.router.add_get("/stats", self._admin(self._serve_stats))
        app.on_response_prepare.append(_answer_once)
        strangers.addFilter(_is_ours)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=strangers)
        await self._runner.setup()
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._accept, self._host, self._port, backlog=CONNECTIONS
            )
        except OSError as error:
            raise ConfigError(
                "HOWDAH_HTTP_PORT", f"cannot listen on {self._host}:{self._port}: {error.strerror}"
            ) from None
        port = self._listening.sockets[0].getsockname()[1]
        self.address = f"http://{self._host}:{port}"

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_INTERVAL)
                self._forget_ended()
                now = asyncio.get_running_loop().time()
                for born, connection in self._connections:
                    if now - born > LIFE:
                        connection.force_close()
        finally:
            if self._listening is not None:
                self._listening.close()
            if self._runner is not None:
                await self._runner.cleanup()

    def _accept(self) -> asyncio.BaseProtocol:
        """Take a connection. Whoever sends half a request, or none, keeps neither a place nor a file descriptor from others."""
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("the port is not open")
        connection = self._runner.server()
        self._forget_ended()
        while len(self._connections) >= CONNECTIONS:
            self._connections.pop(0)[1].force_close()
        self._connections.append((asyncio.get_running_loop().time(), connection))
        return connection

    def _forget_ended(self) -> None:
        """Keep those that live, and those that are just being made: neither they nor those that have ended have a transport."""
        young = asyncio.get_running_loop().time() - LOOK_INTERVAL
        self._connections = [
            (born, connection)
            for born, connection in self._connections
            if connection.transport is not None or born > young
        ]

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        await self._fold()
        return web.Response(
            body=self._metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _serve_healthz(self, _request: web.Request) -> web.Response:
        """Fail only when the main loop hangs: a restart does not mend a database."""
        age = self._vitals.pulse_age()
        return _json({"healthy": age < self._hang_timeout, "pulse_age": round(age, 3)}, ok=age < self._hang_timeout)

    async def _serve_readyz(self, _request: web.Request) -> web.Response:
        reasons = []
        if self._vitals.draining:
            reasons.append("draining")
        if self._vitals.beat_age() > self._ttl / 2:
            reasons.append("the database does not answer")
        if not self._vitals.working:
            reasons.append("nothing was claimed yet")
        return _json({"ready": not reasons, "reasons": reasons}, ok=not reasons)

    async def _serve_queue_health(self, _request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(PATIENCE):
                stuck, pending = await self._store.queue_health(sweep=SWEEP, grace=GRACE)
        except (DatabaseUnavailableError, TimeoutError) as error:
            return _json({"healthy": False, "reason": str(error) or "the database does not answer"}, ok=False)
        return _json({"healthy": not stuck, "stuck_jobs": stuck, "pending_jobs": pending}, ok=not stuck)

    async def _serve_stats(self, _request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(PATIENCE):
                return _json({"jobs": await self._store.stats()}, ok=True)
        except (DatabaseUnavailableError, TimeoutError) as error:
            return _json({"reason": str(error) or "the database does not answer"}, ok=False)

    def _admin(
        self, serve: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Ask for the admin token when the port is open to others than this host."""

        async def guarded(request: web.Request) -> web.Response:
            if self._host in {"127.0.0.1", "::1", "localhost"} and self._admin_token is None:
                return await serve(request)
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if self._admin_token is None or not hmac.compare_digest(given.encode(), self._admin_token.encode()):
                return web.Response(status=401, text="HOWDAH_ADMIN_TOKEN is needed, as a bearer token\n")
            return await serve(request)

        return guarded


async def _answer_once(_request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


def _is_ours(record: logging.LogRecord) -> bool:
    """Keep out of the log what is no request: else everybody could fill it."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _json(body: object, *, ok: bool) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=200 if ok else 503, content_type="application/json")
