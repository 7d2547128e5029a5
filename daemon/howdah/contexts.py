"""A coroutine run in a context of its own, inside a task that runs many."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

#: A step that takes longer than so many seconds has held up the loop, and everything else that lives on it.
BLOCKED = 0.1


class InContext:
    """Awaits a coroutine with every one of its steps run in a context of its own.

    Many jobs run one after the other in one task; what a handler leaves in its context variables must not reach the next.
    `on_blocked` is told the seconds of a step that held up the loop.
    """

    __slots__ = ("_context", "_coroutine", "_on_blocked")

    def __init__(self, coroutine: Any, context: Context, on_blocked: Callable[[Context, float], None]) -> None:
        self._coroutine = coroutine
        self._context = context
        self._on_blocked = on_blocked

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        step, argument = coroutine.send, None
        while True:
            began = monotonic()
            try:
                awaited = run(step, argument)
            except StopIteration as end:
                return end.value
            finally:
                if (seconds := monotonic() - began) > BLOCKED:
                    self._on_blocked(self._context, seconds)
            try:
                argument = yield awaited
                step = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                argument, step = error, coroutine.throw
