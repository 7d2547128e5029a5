"""The end of a worker's life: claim no more, let what runs finish, release the rest, leave nothing half said."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from howdah.job import Job, job_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from howdah.acker import Acker
    from howdah.executor import Executor
    from howdah.slots import QueueSlots
    from howdah.systemd import Notifier

log = logging.getLogger("howdah.drain")

#: What a cancelled handler gets to clean up, and the last acks to be written, in seconds.
CANCEL_GRACE, ACK_GRACE = 3.0, 5.0
#: Between status lines, and between looks at threads, in seconds.
STATUS_INTERVAL, THREADS_INTERVAL = 1.0, 0.05


class Drain:
    """One drain. Heartbeats, cancels and acks go on all the while."""

    def __init__(
        self,
        *,
        slots: Mapping[str, QueueSlots],
        executor: Executor,
        acker: Acker,
        release: Callable[[Iterable[Job[Any]]], None],
        notifier: Notifier,
        timeout: float,
        hurry: asyncio.Event,
    ) -> None:
        self._slots = slots
        self._executor = executor
        self._acker = acker
        self._release = release
        self._notifier = notifier
        self._timeout = timeout
        self._hurry = hurry

    async def run(self) -> bool:
        """Drain; tells whether every handler has ended.

        One that has not swallows its cancellation, or sits in a thread: its job is released all the same, and only the end of
        the process stops it.
        """
        deadline = monotonic() + self._timeout
        self._notifier.stopping(self._timeout + CANCEL_GRACE + ACK_GRACE)
        # What has not started goes back first.
        for slots in self._slots.values():
            self._release(slots.take_back())
        settled = asyncio.ensure_future(self._settled())
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await self._wait_for_running({settled, hurry}, deadline)
            if not settled.done():
                await self._cancel_running(settled)
            await self._written()
            return settled.done() and not self._executor.in_threads
        finally:
            hurry.cancel()
            settled.cancel()

    async def _settled(self) -> None:
        for slots in self._slots.values():
            await slots.settled()

    async def _wait_for_running(self, ends: set[asyncio.Future[Any]], deadline: float) -> None:
        while (left := deadline - monotonic()) > 0:
            running = sum(slots.running for slots in self._slots.values())
            self._notifier.status(f"draining {running} jobs, {left:.0f} s left")
            done, _ = await asyncio.wait(ends, timeout=min(left, STATUS_INTERVAL), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return

    async def _cancel_running(self, settled: asyncio.Future[None]) -> None:
        """Cancel what runs; its attempts are released, not counted."""
        log.warning("drain deadline, releasing", extra={"jobs": sorted(self._executor.running)})
        self._notifier.status("cancelling what still runs")
        self._executor.interrupt(spare_threads=True)
        grace_ends = monotonic() + CANCEL_GRACE
        await asyncio.wait({settled}, timeout=CANCEL_GRACE)
        while self._executor.in_threads and monotonic() < grace_ends:  # noqa: ASYNC110  # a thread tells nobody
            await asyncio.sleep(THREADS_INTERVAL)
        abandoned = self._executor.abandon()
        for job in abandoned:
            log.error("the handler does not end", extra=job_fields(job))
        self._release(abandoned)

    async def _written(self) -> None:
        try:
            async with asyncio.timeout(ACK_GRACE):
                await self._acker.settled()
        except TimeoutError:
            log.warning("left acks behind, others will rescue the jobs", extra={"jobs": self._acker.backlog})
