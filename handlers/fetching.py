"""Fetching from addresses that users gave: only public ones, only so much, only so long."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from yarl import URL

from handlers.addresses import Allowed, GuardedResolver, check_url
from handlers.bodies import read_body
from handlers.fetch_errors import (
    AddressRefusedError,
    AnswerRefusedError,
    FetchError,
    FetchFailedError,
    HopelessFetchError,
    TooLargeError,
    TryLaterError,
)
from handlers.settings import settings
from howdah import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

__all__ = [
    "AddressRefusedError",
    "AnswerRefusedError",
    "FetchError",
    "FetchFailedError",
    "Fetched",
    "Fetcher",
    "HopelessFetchError",
    "TooLargeError",
    "TryLaterError",
    "fetcher",
]

T = TypeVar("T")

_REDIRECTS = 5
_TRIES = 3  # within an attempt of the job
_CONNECT = 10.0  # seconds
_LONGEST_DELAY = 3600.0  # of a Retry-After; who says more is asked again after this
_MOVED = {301, 302, 303, 307, 308}
_LATER = {408, 425, 429}  # of the 4xx those that speak of the moment, not of the address
# Nothing packed: what comes packed all the same is unpacked under the limit.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "howdah-app"}


@lifespan
async def fetcher() -> AsyncIterator[Fetcher]:
    """Open the worker's guarded client."""
    chosen = settings()
    async with opened(Allowed(chosen.fetch_allow), timeout=chosen.fetch_timeout, limit=chosen.fetch_max_bytes) as made:
        yield made


@asynccontextmanager
async def opened(allowed: Allowed, *, timeout: float, limit: int) -> AsyncIterator[Fetcher]:  # noqa: ASYNC109 - of each fetch
    """Open a guarded client, for a test or a script."""
    # No cache of names: what was looked up is used at once, by the connection that was looked up for. No proxy, no cookies:
    # one would connect to what we have not seen, the other carries things from one user's address to another's.
    connector = aiohttp.TCPConnector(resolver=GuardedResolver(allowed), use_dns_cache=False, limit_per_host=8)
    async with aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
        trust_env=False,
    ) as session:
        yield Fetcher(session, allowed, timeout=timeout, limit=limit)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was at an address. `url` is where the redirects led; `content_type` is what the server says, lower case."""

    url: str
    body: bytes
    content_type: str


class Fetcher:
    """The guarded client: `job.resources["fetcher"]`.

    Both calls raise HopelessFetchError when no attempt will mend it, FetchFailedError when another may, and of these TryLaterError
    when the server says when. All their tries together take at most `timeout` seconds.
    """

    def __init__(self, session: aiohttp.ClientSession, allowed: Allowed, *, timeout: float, limit: int) -> None:
        self._session = session
        self._allowed = allowed
        self._timeout = timeout
        self._limit = limit

    async def get(self, url: str, *, limit: int | None = None) -> Fetched:
        """Fetch what is at an address; at most `limit` bytes."""
        most = self._limit if limit is None else min(limit, self._limit)
        return await self._in_time(url, lambda: self._follow(url, most), again=FetchFailedError)

    async def post(self, url: str, *, json: Any, headers: Mapping[str, str] | None = None) -> int:
        """Post JSON to an address, and give the status, 2xx.

        Tried again by itself only while no connection came about: what a server that failed has done with it nobody knows.
        Redirects are refused: the body would go to somebody else.
        """
        return await self._in_time(url, lambda: self._deliver(url, json, headers), again=_NotConnectedError)

    async def _in_time(self, url: str, call: Callable[[], Awaitable[T]], *, again: type[FetchFailedError]) -> T:
        tries = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, again) and not isinstance(error, TryLaterError)),
            stop=stop_after_attempt(_TRIES),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._timeout):
                return await tries(_plainly, url, call)
        except TimeoutError:
            raise FetchFailedError(url, f"is not there within {self._timeout:g} s") from None

    async def _follow(self, url: str, limit: int) -> Fetched:
        """Follow redirects by hand, for each leads to an address that must be looked at anew."""
        target = _parse(url)
        for _ in range(_REDIRECTS + 1):
            check_url(target, self._allowed)
            async with self._session.get(target, allow_redirects=False) as response:
                if response.status not in _MOVED:
                    _check_status(response)
                    return Fetched(str(response.url), await read_body(response, limit), response.content_type.lower())
                target = _next(response)
        raise AnswerRefusedError(url, 310, f"leads through more than {_REDIRECTS} redirects")

    async def _deliver(self, url: str, json: Any, headers: Mapping[str, str] | None) -> int:
        target = _parse(url)
        check_url(target, self._allowed)
        async with self._session.post(target, json=json, headers=headers, allow_redirects=False) as response:
            if response.status in _MOVED:
                raise AnswerRefusedError(url, response.status, f"is answered with {response.status}: it has moved")
            _check_status(response)
            return response.status


class _NotConnectedError(FetchFailedError):
    """Nobody has heard a word of it."""


async def _plainly(url: str, call: Callable[[], Awaitable[T]]) -> T:
    """Say in our words what the client reports."""
    try:
        return await call()
    except aiohttp.InvalidURL as error:
        raise AddressRefusedError(url, f"is refused: it is no proper address ({error})") from None
    except aiohttp.ClientConnectorDNSError as error:
        raise _NotConnectedError(url, f"cannot be reached: no address for {error.host}") from None
    except aiohttp.ClientConnectorError as error:
        raise _NotConnectedError(url, f"cannot be reached: {error.os_error}") from None
    except aiohttp.ConnectionTimeoutError:
        raise _NotConnectedError(url, f"cannot be reached within {_CONNECT:g} s") from None
    except aiohttp.ClientPayloadError:
        raise FetchFailedError(url, "breaks off: the server closed before the end") from None
    except aiohttp.ClientError as error:
        raise FetchFailedError(url, f"fails: {type(error).__name__}: {error}") from None


def _parse(url: str) -> URL:
    try:
        return URL(url)
    except ValueError as error:
        raise AddressRefusedError(url, f"is refused: it is no proper address ({error})") from None


def _next(response: aiohttp.ClientResponse) -> URL:
    try:
        return response.url.join(URL(response.headers["Location"]))
    except (KeyError, ValueError):
        raise AnswerRefusedError(
            response.url, response.status, f"is answered with {response.status} and no proper place to go"
        ) from None


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    delay = _retry_after(response)
    if delay is not None and (status in _LATER or status >= 500):
        raise TryLaterError(response.url, status, delay)
    said = f"is answered with {status} {_phrase(status)}".rstrip()
    if status in _LATER or status >= 500:
        raise FetchFailedError(response.url, said)
    raise AnswerRefusedError(response.url, status, said)


def _phrase(status: int) -> str:
    # Ours, not the server's: it may write anything there.
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else ""


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Give the seconds of a Retry-After, which may also be a date; none for what is neither."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        delay = float(text[:10])
    else:
        try:
            delay = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(delay, 0.0), _LONGEST_DELAY)
