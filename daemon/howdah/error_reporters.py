"""Tells the application's own error reporters of failed attempts, beside the work and never in its way."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from howdah.job import Job, current_job
from howdah.registry import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from howdah.registry import ErrorReporter

log = logging.getLogger("howdah.errors")

F = TypeVar("F", bound=Callable[[Job[Any], BaseException], Any])

#: So many reports may wait; those beyond are dropped, for an exception keeps alive all that its frames held.
LIMIT = 1000
#: So many async reports run at once, each for so many seconds at most.
AT_ONCE, TIMEOUT = 10, 30.0
#: How often the last reports are looked at on the way out, in seconds.
LOOK_INTERVAL = 0.02


def on_error(function: F) -> F:
    """Have a function called with (job, exception) after every attempt that failed: raised, timed out, or refused its payload.

    Not for Snooze, Discard, Cancel, a cancelled job or a release: nothing failed there. An async function runs on the main loop,
    at most ten at once; a plain one in a thread of its own, one call at a time. Neither holds up the job, and what they raise
    is logged once and changes nothing.
    """
    registry.add_error_reporter(function)
    return function


class ErrorReporters:
    """Carries failures to the reporters."""

    def __init__(self, reporters: Sequence[ErrorReporter]) -> None:
        self._reporters = [(reporter, inspect.iscoroutinefunction(reporter)) for reporter in reporters]
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._complained: set[str] = set()
        self._in_thread = 0
        self._done_in_thread = 0

    @property
    def waiting(self) -> int:
        """How many reports are not done."""
        return len(self._tasks) + self._in_thread - self._done_in_thread

    def tell(self, job: Job[Any], error: BaseException) -> None:
        """Report a failed attempt; never waits. On the main loop."""
        for reporter, is_async in self._reporters:
            if self.waiting >= LIMIT:
                self._complain("full", "errors are not reported: %d reports wait already", LIMIT)
                return
            context = contextvars.copy_context()
            context.run(current_job.set, job)
            if is_async:
                task = asyncio.create_task(self._call_async(reporter, job, error), context=context, name="on_error")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._in_thread += 1
                self._calls.put(lambda r=reporter, c=context: c.run(self._call, r, job, error))  # type: ignore[misc]
                self._start_thread()

    async def settled(self, seconds: float) -> None:
        """Wait until every report is done, but not longer than this."""
        ends = monotonic() + seconds
        while self.waiting and monotonic() < ends:  # noqa: ASYNC110  # a thread tells nobody
            await asyncio.sleep(LOOK_INTERVAL)
        if self.waiting:
            log.warning("left reports of errors behind", extra={"reports": self.waiting})

    async def _call_async(self, reporter: ErrorReporter, job: Job[Any], error: BaseException) -> None:
        async with self._turns:
            try:
                async with asyncio.timeout(TIMEOUT):
                    await reporter(job, error)
            except asyncio.CancelledError:
                raise
            except BaseException as failure:
                self._note_failure(reporter, failure)

    def _call(self, reporter: ErrorReporter, job: Job[Any], error: BaseException) -> None:
        try:
            reporter(job, error)
        except BaseException as failure:
            self._note_failure(reporter, failure)

    def _start_thread(self) -> None:
        if self._thread is None:
            # Not to be waited for: a report that hangs must not hold up the end of the process.
            self._thread = threading.Thread(target=self._work, name="on_error", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            self._calls.get()()
            self._done_in_thread += 1

    def _note_failure(self, reporter: ErrorReporter, failure: BaseException) -> None:
        name = f"{reporter.__module__}.{reporter.__qualname__}"
        self._complain(name, "the error reporter %s fails", name, failure=failure)

    def _complain(self, about: str, text: str, *facts: object, failure: BaseException | None = None) -> None:
        """Log once: a reporter that fails does so for every job."""
        if about not in self._complained:
            self._complained.add(about)
            log.error(text, *facts, exc_info=failure)
