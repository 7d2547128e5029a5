"""Wait for a fact instead of sleeping: poll a check until it holds, and say at the end what it said last."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout: float = 10.0, interval: float = 0.02) -> T:
    """Call `check` every `interval` seconds until it returns something truthy, and return that.

    What it raises counts as "not yet". After `timeout` seconds: AssertionError with the last value or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        found, failure = None, None
        try:
            if found := check():
                return found
        except Exception as error:
            failure = error
        if time.monotonic() > deadline:
            _give_up(check, timeout, found, failure)
        time.sleep(interval)


async def aeventually(
    check: Callable[[], Awaitable[T] | T],
    timeout: float = 10.0,  # noqa: ASYNC109 - a check is never cancelled half way
    interval: float = 0.02,
) -> T:
    """Do the same in a coroutine; `check` may be async or not."""
    deadline = time.monotonic() + timeout
    while True:
        found, failure = None, None
        try:
            answer = check()
            found = await answer if inspect.isawaitable(answer) else answer
            if found:
                return found
        except Exception as error:
            failure = error
        if time.monotonic() > deadline:
            _give_up(check, timeout, found, failure)
        await asyncio.sleep(interval)


def _give_up(check: object, timeout: float, found: object, failure: Exception | None) -> NoReturn:
    last = f"it raised {failure!r}" if failure else f"it said {found!r}"
    name = getattr(check, "__qualname__", check)
    raise AssertionError(f"not true within {timeout:g} s: {name}; at last {last}") from failure
