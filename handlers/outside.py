"""Calls of the HTTP services that we trust: the auth server, the chat endpoint, the Bot API.

Addresses that users give do not go through here: they might lead to our own network. Those are handlers/fetching.py's.
"""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from howdah import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

#: What one answer may bring, in bytes, and how much of it an error tells, in characters.
MAX_ANSWER, MAX_MESSAGE = 8 * 1024 * 1024, 300
#: The longest that a service may send us away for, in seconds; and what it means when it does not say.
MAX_DELAY, DEFAULT_DELAY = 24 * 3600.0, 10.0
_TRIES = 3
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
#: Where services put the sentence that says what is wrong.
_SENTENCES = ("message", "msg", "error_description", "description", "detail", "error")


class Answer(NamedTuple):
    """What a service said: `body` is its JSON, or its text where it is none."""

    status: int
    body: Any


class OutsideError(Exception):
    """A service did not do what it was asked. Its message never holds an address: some carry a token in it."""

    def __init__(self, service: str, problem: str) -> None:
        super().__init__(f"{service}: {problem}")
        self.service = service
        self.problem = problem


class UnavailableError(OutsideError):
    """It could not be reached, or failed itself. `unsure`: it may have done the work all the same, its answer was lost."""

    def __init__(self, service: str, problem: str, *, unsure: bool) -> None:
        super().__init__(service, problem)
        self.unsure = unsure


class RefusedError(OutsideError):
    """It understood, and will not (4xx). `answer` is all that it said, `said` its sentence in one line."""

    def __init__(self, service: str, answer: Answer) -> None:
        self.answer = answer
        self.said = _sentence(answer.body)
        super().__init__(service, f"{answer.status} {self.said}".rstrip())


class BusyError(OutsideError):
    """It asks us to come back in `delay` seconds: return `Snooze(error.delay)`."""

    def __init__(self, service: str, status: int, delay: float) -> None:
        super().__init__(service, f"{status}, it is busy for {delay:g} s")
        self.delay = delay


@lifespan
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """One session for all: its connections stay open between the jobs of a worker."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


async def call(
    session: aiohttp.ClientSession,
    service: str,
    method: str,
    url: str,
    *,
    json: Any = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 - it is that of one try
    repeatable: bool | None = None,
    retry_after: Callable[[Any], float | None] | None = None,
) -> Answer:
    """Ask a service, up to three times within a few seconds, and give its answer (2xx).

    A request that may have arrived is repeated only if it is `repeatable`: by its method, or because the caller knows that
    doing it twice does no harm (an idempotency key, a look-up after "it exists"). Raises RefusedError, BusyError, UnavailableError.

    Args:
        session: `job.resources["http"]`.
        service: what people call it; errors begin with it.
        method: GET, POST, …
        url: its address; appears in no error.
        json: the body.
        params: the query.
        headers: a token, an idempotency key, …
        timeout: of one try, in seconds.
        repeatable: None means what the method means.
        retry_after: finds the seconds to wait in the body of a 429 or 503, where the service does not say them in a header.

    """
    sure = method in _REPEATABLE if repeatable is None else repeatable
    retrying = AsyncRetrying(
        stop=stop_after_attempt(_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=2.0),
        retry=retry_if_exception(lambda error: isinstance(error, UnavailableError) and (sure or not error.unsure)),
        reraise=True,
    )
    request = {
        "method": method,
        "url": url,
        "data": None if json is None else orjson.dumps(json),
        "params": params,
        "headers": {
            "Accept": "application/json",
            **({} if json is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        },
        "timeout": aiohttp.ClientTimeout(total=timeout),
        "allow_redirects": False,
    }
    async for attempt in retrying:
        with attempt:
            return await _once(session, service, request, retry_after)
    raise AssertionError("tenacity gives an answer or raises")


async def _once(
    session: aiohttp.ClientSession,
    service: str,
    request: dict[str, Any],
    retry_after: Callable[[Any], float | None] | None,
) -> Answer:
    # `from None` throughout: what aiohttp raises may show the address, and an error of a job is stored with its stack.
    try:
        async with session.request(**request) as response:
            answer = Answer(response.status, _parsed(await _read(response)))
            header = response.headers.get("Retry-After")
    except aiohttp.ClientConnectorError as error:
        raise UnavailableError(service, f"cannot connect: {error.os_error}", unsure=False) from None
    except aiohttp.ConnectionTimeoutError:
        raise UnavailableError(service, "cannot connect in time", unsure=False) from None
    except TimeoutError:
        raise UnavailableError(service, f"no answer within {request['timeout'].total:g} s", unsure=True) from None
    except aiohttp.InvalidURL:
        raise OutsideError(service, "its address in the settings is not one") from None
    except aiohttp.ClientError as error:
        raise UnavailableError(service, f"the connection broke ({type(error).__name__})", unsure=True) from None
    if answer.status < 300:
        return answer
    if answer.status in {429, 503}:
        delay = _delay(header) if header else retry_after(answer.body) if retry_after else None
        if delay is not None or answer.status == 429:
            delay = DEFAULT_DELAY if delay is None else delay
            raise BusyError(service, answer.status, min(max(delay, 0.0), MAX_DELAY))
    if answer.status >= 500:
        raise UnavailableError(service, f"{answer.status} {_sentence(answer.body)}".rstrip(), unsure=True)
    raise RefusedError(service, answer)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER:
            raise aiohttp.ClientPayloadError
    return bytes(body)


def _parsed(body: bytes) -> Any:
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    return body.decode(errors="replace")


def _delay(header: str) -> float | None:
    """Read Retry-After: seconds, or a date. None for neither."""
    if header.strip().isdecimal():
        return float(header)
    with suppress(ValueError):
        return parsedate_to_datetime(header).timestamp() - time.time()
    return None


def _sentence(body: Any) -> str:
    """Find what the service says is wrong, and put it into one line of bounded length."""
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = next((body[name] for name in _SENTENCES if body.get(name)), "")
    text = " ".join(body.split()) if isinstance(body, str) else ""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
