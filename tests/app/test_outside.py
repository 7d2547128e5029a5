"""Calls of trusted HTTP services: what is repeated, what is not, and what an error tells."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from handlers.outside import BusyError, RefusedError, UnavailableError, call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Say = Callable[[web.Request], web.Response]

TOKEN = "s3cr3t-t0k3n"


class Service:
    """Answers with what stands in `script`, the last of it for ever; None breaks the connection."""

    def __init__(self) -> None:
        self.script: list[web.Response | None] = []
        self.asked = 0
        self.free = asyncio.Event()
        self.free.set()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.asked += 1
        await self.free.wait()
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if said is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=said.status, headers=said.headers, body=said.body)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", service.answer)
    async with TestServer(app) as server:
        service.url = str(server.make_url(f"/bot{TOKEN}/do"))
        yield service


@asynccontextmanager
async def asking() -> AsyncIterator[Callable[..., Any]]:
    async with aiohttp.ClientSession() as session:

        async def ask(url: str, method: str = "POST", **given: Any) -> Any:
            return await call(session, "the service", method, url, json={"a": 1}, **given)

        yield ask


def said(status: int, body: object = None, **headers: str) -> web.Response:
    return web.json_response(
        body, status=status, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


async def test_what_failed_for_a_moment_is_asked_again_where_that_does_no_harm(service: Service) -> None:
    async with asking() as ask:
        for broken in (said(500), said(503), None):
            service.script, service.asked = [broken, broken, said(200, {"id": 7})], 0
            assert (await ask(service.url, repeatable=True)).body == {"id": 7}
            assert service.asked == 3
        service.script, service.asked = [said(502)], 0
        with pytest.raises(UnavailableError, match="502"):
            await ask(service.url, "PUT")
        assert service.asked == 3


async def test_what_may_have_been_done_is_not_asked_for_again_unless_it_may_be(service: Service) -> None:
    async with asking() as ask:
        for broken in (said(500), None):
            service.script, service.asked = [broken, said(200)], 0
            with pytest.raises(UnavailableError) as caught:
                await ask(service.url)
            assert (service.asked, caught.value.unsure) == (1, True)


async def test_a_request_that_nobody_has_got_is_asked_again_and_says_so(unused_tcp_port: int) -> None:
    async with asking() as ask:
        with pytest.raises(UnavailableError, match="cannot connect") as caught:
            await ask(f"http://127.0.0.1:{unused_tcp_port}/{TOKEN}")
        assert caught.value.unsure is False
        assert TOKEN not in str(caught.value)


async def test_a_service_that_does_not_answer_in_time_is_said_to_be_unavailable(service: Service) -> None:
    service.free.clear()
    service.script = [said(200)]
    async with asking() as ask:
        with pytest.raises(UnavailableError, match=r"no answer within 0\.1 s") as caught:
            await ask(service.url, timeout=0.1)
    assert caught.value.unsure is True
    service.free.set()


async def test_a_refusal_is_told_in_the_services_words_in_one_line_and_not_asked_again(service: Service) -> None:
    bodies: list[tuple[object, str]] = [
        ({"msg": "no such\r\nuser"}, "no such user"),
        ({"error": {"message": "too short"}}, "too short"),
        ({"ok": False, "description": "blocked"}, "blocked"),
        ("x" * 10_000, "x" * 299 + "…"),
        ({}, ""),
    ]
    async with asking() as ask:
        for body, sentence in bodies:
            service.script, service.asked = [said(422, body)], 0
            with pytest.raises(RefusedError) as caught:
                await ask(service.url, repeatable=True)
            assert str(caught.value) == f"the service: 422 {sentence}".rstrip()
            assert (caught.value.answer.status, caught.value.answer.body) == (422, body)
            assert service.asked == 1


async def test_a_busy_service_tells_when_to_come_back(service: Service) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    hook = lambda body: body["parameters"]["retry_after"]  # noqa: E731 - as a caller writes it
    cases: list[tuple[web.Response, float, float]] = [
        (said(429, Retry_After="7"), 7, 7),
        (said(503, Retry_After="0"), 0, 0),
        (said(429, Retry_After=in_a_minute), 55, 60),
        (said(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 0, 0),
        (said(429, Retry_After="9" * 30), 86_400, 86_400),
        (said(429, {"parameters": {"retry_after": 3}}), 3, 3),
        (said(429, {"parameters": {"retry_after": None}}), 10, 10),
        (said(429, {"parameters": {"retry_after": None}}, Retry_After="soon"), 10, 10),
    ]
    async with asking() as ask:
        for answer, least, most in cases:
            service.script, service.asked = [answer], 0
            with pytest.raises(BusyError) as caught:
                await ask(service.url, repeatable=True, retry_after=hook)
            assert least <= caught.value.delay <= most
            assert service.asked == 1


async def test_an_address_that_carries_a_token_is_in_no_error(service: Service) -> None:
    answers = [said(302, Location=service.url), said(401), said(429), said(500), None]
    async with asking() as ask:
        for answer in answers:
            service.script = [answer]
            with pytest.raises(Exception, match="the service: ") as caught:
                await ask(service.url)
            assert TOKEN not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(Exception, match="the service: ") as caught:
            await ask(f"http:///{TOKEN}")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
