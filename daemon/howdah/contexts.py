"""A coroutine run in a context of its own, inside a task that runs many."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

#: A step that takes longer than so many seconds has held up the loop, and everything else that lives on it.
BLOCKED = 0.1

#: The first step has not been made yet.
_FIRST = object()


class InContext:
    """Awaits a coroutine with every one of its steps run in a context of its own.

    Many jobs run one after the other in one task; what a handler leaves in its context variables must not reach the next.
    `on_blocked` is told the seconds of a step that held up the loop. `awaited`: what the first step gave, if somebody has made it already.
    """

    __slots__ = ("_awaited", "_context", "_coroutine", "_on_blocked")

    def __init__(
        self, coroutine: Any, context: Context, on_blocked: Callable[[Context, float], None], *, awaited: Any = _FIRST
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._on_blocked = on_blocked
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, awaited = self._coroutine, self._awaited
        if awaited is _FIRST:
            try:
                awaited = self._step(coroutine.send, None)
            except StopIteration as end:
                return end.value
        while True:
            step = coroutine.send
            try:
                argument = yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                argument, step = error, coroutine.throw
            try:
                awaited = self._step(step, argument)
            except StopIteration as end:
                return end.value

    def _step(self, step: Callable[[Any], Any], argument: Any) -> Any:
        began = monotonic()
        try:
            return self._context.run(step, argument)
        finally:
            if (seconds := monotonic() - began) > BLOCKED:
                self._on_blocked(self._context, seconds)
