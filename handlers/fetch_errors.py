"""What can go wrong with an address that a user gave. Two sorts: no attempt will mend it, or another one may."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class FetchError(Exception):
    """A fetch that came to nothing. The message begins with the address, without what stands behind its `?`."""

    def __init__(self, url: object, problem: str) -> None:
        super().__init__(f"{shown(url)} {problem}")
        self.url = str(url)
        self.problem = problem


class HopelessFetchError(FetchError):
    """No attempt will mend it: return Discard(str(error)), or declare discard_for=[HopelessFetchError]."""


class AddressRefusedError(HopelessFetchError):
    """We do not go there: not http, a name and password in it, or a network that is not public."""


class TooLargeError(HopelessFetchError):
    """There is more than the limit allows, as sent or as unpacked."""


class AnswerRefusedError(HopelessFetchError):
    """The server says that it will not work: `status` is 4xx, or a redirect that leads nowhere."""

    def __init__(self, url: object, status: int, problem: str | None = None) -> None:
        super().__init__(url, problem or f"is answered with {status}")
        self.status = status


class FetchFailedError(FetchError):
    """It may work another time: no connection, 5xx, broken off, too slow. Let it pass, and the job is tried again."""


class TryLaterError(FetchFailedError):
    """The server names the time after which to come again; `snooze_for` tells whether to obey."""

    PATIENCE = timedelta(days=1)

    def __init__(self, url: object, status: int, delay: float) -> None:
        super().__init__(url, f"is answered with {status}: come again in {delay:.0f} s")
        self.status = status
        self.delay = delay

    def snooze_for(self, created_at: datetime, now: datetime) -> float | None:
        """Give the seconds for a Snooze; None for a job older than a day, whose attempts count: it must end some time."""
        return self.delay if now - created_at < self.PATIENCE else None


def shown(url: object) -> str:
    """Give an address as it may stand in an error: the query may hold a signature, the user part a password."""
    text = str(url).partition("?")[0].partition("#")[0]
    scheme, slashes, rest = text.partition("://")
    if slashes:
        host, slash, path = rest.partition("/")
        text = scheme + slashes + host.rpartition("@")[2] + slash + path
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 200 else text[:199] + "…"
