"""The signals of the operating system, each led to one call on the main loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType


class OSSignals:
    """Handles signals for the length of a `with`.

    Plain handlers, not the loop's: they run even while a handler of ours blocks the loop, so `at_once` (which must be
    safe at any point of the program) can tell the lifeline when a drain began.
    """

    def __init__(
        self, calls: Mapping[signal.Signals, Callable[[], None]], *, at_once: Callable[[signal.Signals], None]
    ) -> None:
        self._calls = calls
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a service inside somebody's test or program: signals are the program's own
        loop = asyncio.get_running_loop()

        def handle(number: int, _frame: FrameType | None) -> None:
            self._at_once(signal.Signals(number))
            loop.call_soon_threadsafe(self._calls[signal.Signals(number)])

        for number in self._calls:
            self._before[number] = signal.signal(number, handle)

    def __exit__(self, *_failure: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def describe_tasks() -> str:
    """Give the stack of every task of this loop and of every thread, as text."""
    lines = []
    for task in asyncio.all_tasks():
        lines.append(f"task {task.get_name()}: {task.get_coro()!r}")
        for frame in _frames(task.get_coro()):
            lines.extend(line.rstrip() for line in traceback.format_stack(frame, limit=1))
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001  # the documented way to another thread's stack
        lines.append(f"thread {names.get(ident, ident)}")
        lines.extend(line.rstrip() for line in traceback.format_stack(frame))
    return "\n".join(lines)


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Give the frames from a task's coroutine down to what it waits in: a task itself knows only the first of them."""
    while awaited is not None:
        frame = next(
            filter(None, (getattr(awaited, name, None) for name in ("cr_frame", "gi_frame", "ag_frame"))), None
        )
        if frame is None:
            return
        yield frame
        below = (getattr(awaited, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
        # The executor drives a handler's coroutine by hand, in a generator that keeps it under this name.
        awaited = next(filter(None, below), None) or frame.f_locals.get("coroutine")
