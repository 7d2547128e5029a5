"""A coroutine run in a context of its own, inside a task that runs many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import Context


class InContext:
    """Awaits a coroutine with every one of its steps run in a context of its own.

    Many jobs run one after the other in one task; what a handler leaves in its context variables must not reach the next.
    """

    __slots__ = ("_context", "_coroutine")

    def __init__(self, coroutine: Any, context: Context) -> None:
        self._coroutine = coroutine
        self._context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        step, argument = coroutine.send, None
        while True:
            try:
                awaited = run(step, argument)
            except StopIteration as end:
                return end.value
            try:
                argument = yield awaited
                step = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                argument, step = error, coroutine.throw
