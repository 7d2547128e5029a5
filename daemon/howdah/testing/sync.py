"""The test kit for tests that are plain functions: the same names, each waiting until it is done.

A connection belongs to the loop that made it, so these take a database or an address in its place.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from howdah.errors import HowdahError
from howdah.testing import attempt, enqueued, running
from howdah.testing.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["assert_enqueued", "assert_not_enqueued", "run_job", "run_until_empty"]


def _waiting(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    @functools.wraps(function)
    def wait(*arguments: P.args, **options: P.kwargs) -> T:
        __tracebackhide__ = True
        try:
            return wait_for(function(*arguments, **options))
        except (AssertionError, HowdahError) as error:
            raise error.with_traceback(None) from None  # the thread's own frames would stand between it and the test

    return wait


run_until_empty = _waiting(running.run_until_empty)
assert_enqueued = _waiting(enqueued.assert_enqueued)
assert_not_enqueued = _waiting(enqueued.assert_not_enqueued)
run_job = _waiting(attempt.run_job)
