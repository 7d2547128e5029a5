"""The claims of limited jobs: only into slots that are free, when something says that there may be room.

A job with limits or a FIFO key holds its keys from its claim on, so it is never claimed ahead. While nothing is known of
such jobs, nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from howdah.job import Attempt, Job
    from howdah.metrics import Metrics
    from howdah.slots import QueueSlots
    from howdah.store import Store

log = logging.getLogger("howdah.limited")

#: After a statement that found no database, in seconds.
RETRY_PAUSE = 0.05
#: Between tries to claim while something keeps this worker from it, in seconds.
HELD_PAUSE = 0.2
#: At least so many seconds lie between looks that nothing new has caused.
SHORTEST = 0.002


class LimitedClaimer:
    """Claims for slots that it has set aside first. On a connection of its own: its claims hold up no others."""

    def __init__(
        self,
        *,
        store: Store,
        slots: Mapping[str, QueueSlots],
        kinds: Sequence[str],
        worker: Callable[[], int],
        may_claim: Callable[[], bool],
        give_back: Callable[[Iterable[Job[Any]]], None],
        on_doubt: Callable[[int], None],
        metrics: Metrics,
        poll_interval: float,
    ) -> None:
        self._store = store
        self._slots = slots
        self._kinds = tuple(kinds)
        self._worker = worker
        self._may_claim = may_claim
        self._give_back = give_back
        self._on_doubt = on_doubt
        self._metrics = metrics
        self._poll_interval = poll_interval
        self._stir = asyncio.Event()
        self._stopping = False
        # Whether there may be something to take, and when to look again by itself.
        self._wanted = False
        self._next_look: float | None = None
        #: The queues that had more to give than room for it.
        self.full: set[str] = set()
        # The slots that are set aside for the next claim.
        self._aside = dict.fromkeys(slots, 0)
        self._passed = False
        # The limited jobs whose end is not written yet: their end makes room for others.
        self._mine: set[int] = set()

    def look(self) -> None:
        """Say that limited jobs may have come, or may start now. On the main loop."""
        self._wanted = True
        self._stir.set()

    def room(self) -> None:
        """Say that a job has ended. Its slot is ours at once, or the next job in hand would have it; every other time, if one is there."""
        for name in self.full:
            slots = self._slots[name]
            self._passed = bool(slots.hand) and not self._passed
            if not self._passed and (got := slots.set_aside(1)):
                self._aside[name] += got
                self.look()

    def written(self, attempts: Sequence[Attempt]) -> None:
        """Say that the ends of attempts have been written."""
        if self._mine and (ended := self._mine.intersection(attempt.id for attempt in attempts)):
            self._mine -= ended
            self.look()

    def stop(self) -> None:
        """Claim no more; `run` returns after the claim that is on its way."""
        self._stopping = True
        self._stir.set()

    async def run(self) -> None:
        """Claim for as long as the service takes work."""
        while not self._stopping:
            self._stir.clear()
            try:
                if self._wanted and self._may_claim():
                    await self._look()
            except DatabaseUnavailableError as error:
                log.debug("claim failed", extra={"error": str(error)})
                self._wanted = True
                await asyncio.sleep(RETRY_PAUSE)
            else:
                await self._rest()
        self._set_free()

    async def _look(self) -> None:
        """Claim into all slots that are free, if any are."""
        for name, slots in self._slots.items():
            self._aside[name] += slots.set_aside(slots.size)
        if not any(self._aside.values()):
            self.full = set(self._slots)
            return
        rooms = dict(self._aside)
        self._wanted = False
        lease = secrets.randbits(63)
        try:
            claim = await self._store.claim_limited(self._worker(), lease, self._kinds, rooms)
        except BaseException:
            self._on_doubt(lease)
            raise
        finally:
            self._set_free()
        self._next_look = None if claim.next_in is None else monotonic() + max(claim.next_in, SHORTEST)
        counts = Counter(job.queue for job in claim.jobs)
        self.full = {name for name, room in rooms.items() if counts[name] >= room} if claim.more else set()
        self._hand_over(claim.jobs)

    def _hand_over(self, jobs: Sequence[Job[Any]]) -> None:
        now = monotonic()
        for job in jobs:
            job.in_hand_since = now
            self._mine.add(job.id)
            self._metrics.claimed.labels(job.queue).inc()
            if self._stopping:
                self._give_back([job])  # the claim was on its way when the drain began
            else:
                self._slots[job.queue].give_first(job)

    def _set_free(self) -> None:
        for name, slots in self._slots.items():
            aside, self._aside[name] = self._aside[name], 0
            slots.set_free(aside)

    async def _rest(self) -> None:
        """Sleep until told, or until a token is due; a word may be lost where there is more than room for it."""
        times = [] if self._next_look is None else [self._next_look - monotonic()]
        if self._wanted or self.full:
            times.append(HELD_PAUSE if self._wanted else self._poll_interval)
        try:
            async with asyncio.timeout(max(min(times), 0.0) if times else None):
                await self._stir.wait()
        except TimeoutError:
            self._wanted = True
