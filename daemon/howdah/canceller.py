"""Carries requests to cancel to the jobs that this worker holds."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import orjson

from howdah.errors import DatabaseUnavailableError
from howdah.job import Attempt, job_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from howdah.executor import Executor
    from howdah.job import Job
    from howdah.slots import QueueSlots
    from howdah.store import Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.canceller")

#: Between looks while the control channel is not heard, in seconds.
DEAF_INTERVAL = 1.0


class Canceller:
    """Looks at the requests when told to, and every second while deaf."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        slots: Mapping[str, QueueSlots],
        put: Callable[[Attempt], None],
        vitals: Vitals,
    ) -> None:
        self._store = store
        self._executor = executor
        self._slots = slots
        self._put = put
        self._vitals = vitals
        self._stir = asyncio.Event()

    def look(self) -> None:
        """Say that there are requests. On the main loop."""
        self._stir.set()

    async def run(self) -> None:
        """Carry requests for as long as the service lives, to the end of its drain."""
        while True:
            try:
                async with asyncio.timeout(DEAF_INTERVAL):
                    await self._stir.wait()
            except TimeoutError:
                if self._vitals.listening or not self._holds_jobs():
                    continue
            self._stir.clear()
            try:
                for job_id, by, reason in await self._store.apply_signals():
                    self._cancel(job_id, by, reason)
            except DatabaseUnavailableError as error:
                log.debug("look at signals failed", extra={"error": str(error)})
                self._stir.set()
                await asyncio.sleep(DEAF_INTERVAL)

    def _holds_jobs(self) -> bool:
        return any(slots.running or slots.hand for slots in self._slots.values())

    def _cancel(self, job_id: int, by: str | None, reason: str | None) -> None:
        job = self._executor.running.get(job_id)
        if job is not None:
            self._executor.cancel(job, by, reason)
            return
        for slots in self._slots.values():
            waiting = slots.take_out(job_id)
            if waiting is not None:
                self._put(_cancelled(waiting, by, reason))


def _cancelled(job: Job[Any], by: str | None, reason: str | None) -> Attempt:
    log.debug("cancelled before it started", extra=job_fields(job))
    return Attempt(job.id, job.lease, "cancelled", None, orjson.dumps({"by": by, "reason": reason}))
