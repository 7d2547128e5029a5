"""The guarded client, against a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from support.web import Web, website
from yarl import URL

from handlers.addresses import Allowed, GuardedResolver, check_url
from handlers.fetching import (
    AddressRefusedError,
    AnswerRefusedError,
    FetchFailedError,
    HopelessFetchError,
    TooLargeError,
    TryLaterError,
    opened,
)
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from handlers.fetching import Fetcher

LIMIT = 100_000


@pytest.fixture
async def site() -> AsyncIterator[Web]:
    async with website() as site:
        yield site


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    async with opened(Allowed(["127.0.0.0/8"]), timeout=3, limit=LIMIT) as fetcher:
        yield fetcher


@pytest.fixture
async def strict() -> AsyncIterator[Fetcher]:
    async with opened(Allowed(), timeout=3, limit=LIMIT) as fetcher:
        yield fetcher


# -- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:5432/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://localhost/",
        "http://LocalHost/",
        "http://10.1.2.3/",
        "http://172.31.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://240.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25lo]/",
        "http://[fd00::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "http://user:secret@example.org/",
        "http://",
        "//example.org/a.png",
        "",
        "http://[::1",
        "http://exa mple.org\r\n/",
    ],
)
async def test_what_is_not_public_http_is_refused(strict: Fetcher, address: str) -> None:
    with pytest.raises(AddressRefusedError) as refused:
        await strict.get(address)
    assert "is refused" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["http://8.8.8.8/", "https://[2606:4700::1111]:8443/a", "http://[64:ff9b::808:808]/", "http://example.org/"],
)
def test_what_is_public_is_not_refused_by_its_looks(address: str) -> None:
    check_url(URL(address), Allowed())


async def test_a_name_one_of_whose_addresses_is_private_is_refused(strict: Fetcher, site: Web) -> None:
    resolver = GuardedResolver(Allowed())
    with pytest.raises(AddressRefusedError, match=r"localhost is refused: .* is not in a public network"):
        await resolver.resolve("localhost", 80)
    await resolver.close()
    with pytest.raises(AddressRefusedError):
        await strict.get(f"http://localhost:{site.port}/")
    assert site.asked == []


async def test_a_name_is_judged_by_the_very_addresses_that_are_connected_to(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile name server gives an address that is allowed, and another one the next time."""
    answers = iter(["127.0.0.2", "127.0.0.1"])

    def getaddrinfo(_host: str, port: int, *_given: object, **_named: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr("handlers.addresses.socket.getaddrinfo", getaddrinfo)
    async with opened(Allowed(["127.0.0.2"]), timeout=3, limit=LIMIT) as fetcher:
        # The first connection is refused, for nobody listens there; the next try looks the name up anew, and judges anew.
        with pytest.raises(AddressRefusedError, match=r"rebinding\.example is refused: 127\.0\.0\.1"):
            await fetcher.get(f"http://rebinding.example:{site.port}/")
    assert site.asked == []
    assert list(answers) == []


async def test_a_slow_name_server_holds_up_no_other_name(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    release, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *given: Any, **named: Any) -> Any:
        if host == "slow.example":
            release.wait(10)
            raise OSError("no such name")
        return real(host, *given, **named)

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    site.page("/a", b"a")
    async with opened(Allowed(["localhost"]), timeout=0.3, limit=LIMIT) as fetcher:
        slow = [asyncio.create_task(fetcher.get("http://slow.example/")) for _ in range(10)]
        assert (await fetcher.get(f"http://localhost:{site.port}/a")).body == b"a"
        # As the database's driver asks.
        assert await asyncio.get_running_loop().getaddrinfo("localhost", 5432)
        for failed in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(failed, FetchFailedError)
        release.set()


async def test_names_and_networks_may_be_allowed(site: Web) -> None:
    site.page("/a", b"a")
    async with opened(Allowed(["LocalHost"]), timeout=3, limit=LIMIT) as fetcher:
        assert (await fetcher.get(f"http://localhost:{site.port}/a")).body == b"a"
        with pytest.raises(AddressRefusedError):
            await fetcher.get(site.address + "/a")


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0.1/8", "127.1", "fe80::/200", "a b", "-x", "host/24"])
def test_an_allow_list_with_a_slip_in_it_names_its_variable(entry: str) -> None:
    with pytest.raises(ConfigError, match="APP_FETCH_ALLOW"):
        Allowed([entry])


async def test_every_redirect_is_looked_at_anew(fetcher: Fetcher, site: Web) -> None:
    site.page("/private", status=302, Location="http://10.0.0.1/latest/meta-data")
    site.page("/file", status=302, Location="file:///etc/passwd")
    site.page("/nowhere", status=302)
    for path, problem in [("/private", "10.0.0.1/latest/meta-data is refused"), ("/file", "only http and https")]:
        with pytest.raises(AddressRefusedError, match=problem):
            await fetcher.get(site.address + path)
    with pytest.raises(AnswerRefusedError, match="no proper place"):
        await fetcher.get(site.address + "/nowhere")


async def test_five_redirects_are_followed_and_no_more(fetcher: Fetcher, site: Web) -> None:
    for number in range(1, 7):
        site.page(f"/{number}", status=302, Location=f"{number - 1}")
    site.page("/0", b"there", Content_Type="IMAGE/PNG")
    fetched = await fetcher.get(site.address + "/5")
    assert (fetched.url, fetched.body, fetched.content_type) == (site.address + "/0", b"there", "image/png")
    with pytest.raises(AnswerRefusedError, match="more than 5 redirects"):
        await fetcher.get(site.address + "/6")


# -- how much, how long -----------------------------------------------------------------------------------------------


async def test_what_is_too_large_is_cut_whether_it_says_so_or_not(fetcher: Fetcher, site: Web) -> None:
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"x" * 10_000)
        return response

    for address in (site.page("/said", b"x" * (LIMIT + 1)), site.put("/unsaid", chunked)):
        with pytest.raises(TooLargeError, match="more than 100,000 bytes"):
            await fetcher.get(address)
    assert len((await fetcher.get(site.page("/fits", b"x" * LIMIT))).body) == LIMIT
    with pytest.raises(TooLargeError, match="more than 10 bytes"):
        await fetcher.get(site.page("/eleven", b"x" * 11), limit=10)


async def test_a_bomb_is_cut_before_it_is_unpacked(
    fetcher: Fetcher, site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, *given: int) -> None:
            self._stream = real(*given)

        def __getattr__(self, name: str) -> object:
            return getattr(self._stream, name)

        def decompress(self, *given: object) -> bytes:
            unpacked.append(self._stream.decompress(*given))  # type: ignore[arg-type]
            return unpacked[-1]

    monkeypatch.setattr("handlers.bodies.zlib.decompressobj", Watched)
    bomb = site.page("/bomb", gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")
    with pytest.raises(TooLargeError):
        await fetcher.get(bomb)
    assert sum(map(len, unpacked)) == LIMIT + 1


async def test_what_is_packed_unasked_is_unpacked_and_what_nobody_can_unpack_is_refused(
    fetcher: Fetcher, site: Web
) -> None:
    assert (
        await fetcher.get(site.page("/gz", gzip.compress(b"a" * 9000), Content_Encoding="gzip"))
    ).body == b"a" * 9000
    with pytest.raises(HopelessFetchError, match="packed as 'br'"):
        await fetcher.get(site.page("/br", b"...", Content_Encoding="br"))
    with pytest.raises(HopelessFetchError, match="badly packed"):
        await fetcher.get(site.page("/bad", b"no gzip at all", Content_Encoding="gzip"))
    with pytest.raises(FetchFailedError, match="in the middle"):
        await fetcher.get(site.page("/cut", gzip.compress(b"a" * 9000)[:-9], Content_Encoding="gzip"))


async def test_a_server_that_drips_is_left_in_time(site: Web) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)

    address = site.put("/drip", drip)
    began = monotonic()
    async with opened(Allowed(["127.0.0.1"]), timeout=0.4, limit=LIMIT) as fetcher:
        with pytest.raises(FetchFailedError, match=r"is not there within 0.4 s"):
            await fetcher.get(address)
    assert monotonic() - began < 4
    assert site.asked == ["/drip"]


# -- what may work another time ---------------------------------------------------------------------------------------


async def test_what_fails_at_first_is_tried_again_at_once(fetcher: Fetcher, site: Web) -> None:
    async def breaks_twice(request: web.Request) -> web.StreamResponse:
        if len(site.asked) == 1:
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * (1000 if len(site.asked) > 2 else 100))
        request.transport.close()  # type: ignore[union-attr]
        return response

    fetched = await fetcher.get(site.put("/", breaks_twice))
    assert fetched.body == b"x" * 1000
    assert len(site.asked) == 3


async def test_a_server_that_always_breaks_off_is_told_of_after_three_tries(fetcher: Fetcher, site: Web) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 100)
        request.transport.close()  # type: ignore[union-attr]
        return response

    with pytest.raises(FetchFailedError, match="breaks off: the server closed before the end"):
        await fetcher.get(site.put("/", breaks))
    assert len(site.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_what_the_server_refuses_is_hopeless_and_asked_once(fetcher: Fetcher, site: Web, status: int) -> None:
    with pytest.raises(AnswerRefusedError, match=f"is answered with {status} ") as refused:
        await fetcher.get(site.page("/", status=status))
    assert refused.value.status == status
    assert len(site.asked) == 1


async def test_retry_after_is_told_and_obeyed_by_asking_once(fetcher: Fetcher, site: Web) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    for said, least, most in [("7", 7, 7), (in_a_minute, 50, 60), ("99999999999999", 3600, 3600), ("-", None, None)]:
        site.asked.clear()
        address = site.page("/", status=429, Retry_After=said)
        with pytest.raises(FetchFailedError) as failed:
            await fetcher.get(address)
        if least is None:
            assert len(site.asked) == 3
            continue
        assert isinstance(failed.value, TryLaterError)
        assert least <= failed.value.delay <= most
        assert len(site.asked) == 1
    now = datetime.now(UTC)
    later = TryLaterError("http://x/", 429, 7)
    assert (later.snooze_for(now, now), later.snooze_for(now - timedelta(days=2), now)) == (7, None)


async def test_nobody_there_and_an_unknown_name_may_work_another_time(fetcher: Fetcher) -> None:
    async with website() as gone:
        pass
    with pytest.raises(FetchFailedError, match="cannot be reached"):
        await fetcher.get(gone.address)
    with pytest.raises(FetchFailedError, match=r"no address for nobody\.invalid"):
        await fetcher.get("http://nobody.invalid/")


async def test_an_error_does_not_show_what_stands_behind_the_question_mark(fetcher: Fetcher, site: Web) -> None:
    with pytest.raises(AnswerRefusedError) as refused:
        await fetcher.get(site.address + "/a?signature=secret#secret")
    assert "secret" not in str(refused.value)


# -- posting ----------------------------------------------------------------------------------------------------------


async def test_a_post_arrives_once_and_its_status_is_given(fetcher: Fetcher, site: Web) -> None:
    heard = []

    async def hook(request: web.Request) -> web.Response:
        heard.append((await request.json(), request.headers["Idempotency-Key"]))
        return web.Response(status=202)

    address = site.put("/hook", hook)
    assert await fetcher.post(address, json={"a": 1}, headers={"Idempotency-Key": "7"}) == 202
    assert heard == [({"a": 1}, "7")]


async def test_a_post_that_may_have_arrived_is_not_sent_again(fetcher: Fetcher, site: Web) -> None:
    for address in (site.page("/500", status=500), site.page("/503", status=503)):
        with pytest.raises(FetchFailedError):
            await fetcher.post(address, json={})
    assert site.asked == ["/500", "/503"]


async def test_a_post_goes_nowhere_else(fetcher: Fetcher, strict: Fetcher, site: Web) -> None:
    address = site.page("/moved", status=307, Location="/")
    with pytest.raises(AnswerRefusedError, match="it has moved"):
        await fetcher.post(address, json={})
    with pytest.raises(AddressRefusedError):
        await strict.post(address, json={})
    assert site.asked == ["/moved"]
