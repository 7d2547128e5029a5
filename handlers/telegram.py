"""Messages by Telegram's Bot API: one request, and what can be known of it afterwards.

The address of a request holds the bot's token, and aiohttp puts addresses into its errors: none of them leaves this module.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from handlers.settings import settings
from howdah import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import SimpleNamespace

_MOST = 65_536  # bytes of an answer that are read; a message's own are a few thousand
_CALM = 5.0  # seconds, when the server wants silence and does not say for how long


@dataclass(frozen=True, slots=True)
class Sent:
    """It was delivered; the message's id in its chat."""

    external_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be delivered to this chat: blocked, not found, not a text that can be sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """It was not delivered, and the server says when to ask again."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """It was surely not delivered, and may be if it is tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The whole request was on its way, and no answer came: it may have been delivered."""

    reason: str


Outcome = Sent | Refused | Later | NotSent | Unknown


@lifespan
async def telegram() -> AsyncIterator[Telegram]:
    """Share the connections to the Bot API among the jobs of a worker."""
    wanted = settings()
    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(_leaves)
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=wanted.telegram_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[tracing],
    ) as session:
        yield Telegram(session, wanted.telegram_url)


class Telegram:
    """Sends, once for each call: whoever keeps a rate must know how often it was asked for."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def send_message(self, token: str, chat_id: str, text: str) -> Outcome:
        """Send a text to a chat and tell what came of it. Raises nothing but CancelledError."""
        url = URL(f"{self._url}/bot{quote(token, safe=':')}/sendMessage", encoded=True)
        wire = {"touched": False}
        try:
            async with self._session.post(
                url, json={"chat_id": chat_id, "text": text}, allow_redirects=False, trace_request_ctx=wire
            ) as response:
                outcome = _understood(response, await response.content.read(_MOST))
        except Exception as error:
            # Its text is not ours to show, and its type says what happened.
            kind = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
            return (
                Unknown(f"{kind} after the request was sent") if wire["touched"] else NotSent(f"no connection: {kind}")
            )
        return _without(token, outcome)


async def _leaves(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    """Note that the first byte of a request is about to leave: before that, nothing can have been delivered."""
    context.trace_request_ctx["touched"] = True


def _understood(response: aiohttp.ClientResponse, body: bytes) -> Outcome:
    answer: Any = None
    with suppress(ValueError):
        answer = json.loads(body)
    if not isinstance(answer, dict):
        answer = {}
    reason = f"{response.status} {answer.get('description') or response.reason or 'no description'}"
    match response.status:
        case 200:
            message_id = result.get("message_id") if isinstance(result := answer.get("result"), dict) else None
            if answer.get("ok") is not True or message_id is None:
                return Unknown("200 with an answer that has no message id")
            return Sent(str(message_id))
        case 400 | 403:
            return Refused(reason)
        case 429:
            return Later(_calm(answer, response), reason)
        case 504:  # a gateway that did not wait for the server's own answer
            return Unknown(reason)
        case _:
            return NotSent(reason)


def _calm(answer: dict[str, Any], response: aiohttp.ClientResponse) -> float:
    parameters = answer.get("parameters")
    wanted = parameters.get("retry_after") if isinstance(parameters, dict) else None
    for said in (wanted, response.headers.get("Retry-After")):
        with suppress(TypeError, ValueError):
            return min(max(float(said), 0.0), 86_400.0)  # type: ignore[arg-type]
    return _CALM


def _without(token: str, outcome: Outcome) -> Outcome:
    """Take the token out of what the server said."""
    match outcome:
        case Later(seconds, reason):
            return Later(seconds, reason.replace(token, "***"))
        case Refused(reason) | NotSent(reason) | Unknown(reason):
            return type(outcome)(reason.replace(token, "***"))
        case _:
            return outcome
