"""The side thread: heartbeat, listener and port on an event loop of their own.

A handler that blocks the main loop for a while then neither makes its worker look dead, nor leaves a LISTEN socket unread
(which pins the xmin horizon of the whole database), nor hides the metrics.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import uvloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from howdah.systemd import Notifier
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.lifeline")

HUNG = 75
#: A main loop whose pulse is older than so many seconds stands still.
STANDSTILL = 2.0


class Lifeline:
    """Runs `parts` (built on its own loop by `build`) until stopped; tells `on_failure` if one of them dies."""

    def __init__(
        self,
        *,
        build: Callable[[], Awaitable[list[Callable[[], Awaitable[None]]]]],
        close: Callable[[], Awaitable[None]],
        vitals: Vitals,
        notifier: Notifier,
        hang_timeout: float,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._build = build
        self._close = close
        self._vitals = vitals
        self._notifier = notifier
        self._hang_timeout = hang_timeout
        self._on_failure = on_failure
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="lifeline", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until its parts are built. Raises what building them raised."""
        self._thread.start()
        await asyncio.to_thread(self._started.wait)
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Stop the parts and wait for the thread, a few seconds at most."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            await asyncio.to_thread(self._thread.join, 5)

    def _main(self) -> None:
        try:
            uvloop.run(self._run())
        except BaseException as error:
            if self._started.is_set():
                self._on_failure(error)
            else:
                self._error = error
        finally:
            self._started.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        parts = await self._build()
        self._started.set()
        tasks = [asyncio.ensure_future(part()) for part in (*parts, self._watch_pulse)]
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await self._close()

    async def _watch_pulse(self) -> None:
        """Feed the watchdog while the main loop turns, and end the process when it hangs or outstays its drain.

        Nobody else can: the main loop may be held by a handler for good. Its jobs are better off elsewhere.
        """
        interval = min(self._hang_timeout / 4, 1.0, self._notifier.watchdog_interval or 1.0)
        while True:
            await asyncio.sleep(interval)
            if self._vitals.pulse_age() > self._hang_timeout:
                self._leave("the main loop hangs, leaving", seconds=self._vitals.pulse_age())
            now, leave_by, turn_by = time.monotonic(), self._vitals.leave_by, self._vitals.turn_by
            if leave_by is not None and now > leave_by:
                self._leave("the drain has no end, leaving", seconds=self._vitals.pulse_age())
            if turn_by is not None and now > turn_by and self._vitals.pulse_age() > STANDSTILL:
                self._leave("a handler holds up the drain, leaving", seconds=self._vitals.pulse_age())
            self._notifier.feed_watchdog()

    def _leave(self, why: str, *, seconds: float) -> NoReturn:
        log.error(why, extra={"pulse_age": round(seconds, 1)})
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)
