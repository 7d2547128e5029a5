"""The lane of suspects: what was in a dead worker's hand runs alone, one job after the other."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from howdah.job import Job
    from howdah.metrics import Metrics
    from howdah.slots import QueueSlots
    from howdah.store import Store

log = logging.getLogger("howdah.suspects")

#: Between looks at whether the hands are empty, in seconds.
EMPTY_INTERVAL = 0.002
#: Between tries while something keeps this worker from claims, or some queue has no free slot, in seconds.
HELD_PAUSE = 0.05


class SuspectLane:
    """Claims a suspect when the one before it has ended. While it is busy nothing is claimed ahead: what brings a worker down must find nothing in its hand."""

    def __init__(
        self,
        *,
        store: Store,
        slots: Mapping[str, QueueSlots],
        kinds: Sequence[str],
        capped: bool,
        worker: Callable[[], int],
        may_claim: Callable[[], bool],
        written: Callable[[int], Awaitable[None]],
        give_back: Callable[[Iterable[Job[Any]]], None],
        on_doubt: Callable[[int], None],
        on_end: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """`capped`: a free slot may have to wait for a place among all queues. `on_doubt`: told the lease of a claim whose reply was lost."""
        self._store = store
        self._slots = slots
        self._kinds = tuple(kinds)
        self._capped = capped
        self._worker = worker
        self._may_claim = may_claim
        self._written = written
        self._give_back = give_back
        self._on_doubt = on_doubt
        self._on_end = on_end
        self._metrics = metrics
        self._stir = asyncio.Event()
        self._stopping = False
        self._wanted = False
        #: Whether a suspect runs, or may be on its way.
        self.busy = False
        # What came of the last one may not be written yet.
        self._last: Job[Any] | None = None
        self._runs: asyncio.Future[None] | None = None

    def look(self) -> None:
        """Say that suspects wait to be run. On the main loop."""
        self._wanted = True
        self._stir.set()

    def stop(self) -> None:
        """Claim no more; `run` returns after the claim that is on its way. A suspect that runs is the drain's to wait for."""
        self._stopping = True
        self._stir.set()
        if self._runs is not None and not self._runs.done():
            self._runs.set_result(None)

    async def run(self) -> None:
        """Run suspects, whenever there are any, for as long as the service takes work."""
        while not self._stopping:
            self._stir.clear()
            if self._wanted and self._may_claim():
                await self._run_all()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(HELD_PAUSE if self._wanted else None):
                        await self._stir.wait()

    async def _run_all(self) -> None:
        self.busy = True
        try:
            while not self._stopping and any(slots.hand for slots in self._slots.values()):  # noqa: ASYNC110  # rare
                await asyncio.sleep(EMPTY_INTERVAL)
            self._wanted = False
            while not self._stopping and await self._run_one():
                if not self._may_claim():
                    self._wanted = True
                    return
        except DatabaseUnavailableError as error:
            log.debug("claim failed", extra={"error": str(error)})
            self._wanted = True
            await asyncio.sleep(HELD_PAUSE)
        finally:
            self.busy = False
            self._on_end()

    async def _run_one(self) -> bool:
        """Run the next suspect to its end; tells whether there may be more."""
        roomy = [name for name, slots in self._slots.items() if slots.set_aside(1)]
        try:
            job = await self._claim(roomy)
            if job is not None:
                # In hand before its slot is set free: a limited job would take that at once, and this one, whose start is written, would wait.
                self._last, self._runs = job, self._slots[job.queue].end_of(job)
                self._slots[job.queue].give_first(job)
        finally:
            for name in roomy:
                self._slots[name].set_free(1)
        if job is not None and self._runs is not None:
            await self._runs
        elif self._last is not None:
            # The next one may bring us down, and this one must not answer for it.
            await self._written(self._last.id)
            self._last = None
        elif len(roomy) < len(self._slots):
            await asyncio.sleep(HELD_PAUSE)
        else:
            return False
        return True

    async def _claim(self, queues: Sequence[str]) -> Job[Any] | None:
        """Claim into one of these queues, in each of which a slot is kept free, so that the job starts when its claim says so."""
        lease = secrets.randbits(63)
        try:
            job = await self._store.claim_suspect(
                self._worker(), lease, self._kinds, queues, begun=not self._capped, before=self._last
            )
        except BaseException:
            self._on_doubt(lease)
            raise
        if job is None:
            return None
        job.in_hand_since = monotonic()
        self._metrics.claimed.labels(job.queue).inc()
        if self._stopping:
            self._give_back([job])  # the claim was on its way when the drain began
            return None
        return job
