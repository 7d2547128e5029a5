"""Claims that nobody answered for, looked for again and again: one may still be on its way when a look has found nothing.

What a slow wire or a slow server holds back can be done long after its sender has hung up. The jobs of such a claim would be this
worker's, which lives, and would be run by nobody.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.store import Store

log = logging.getLogger("howdah.doubts")

#: The first look comes at once, others after so many seconds, and then after twice as many each time. After the longest pause it is enough.
FIRST, LONGEST = 1.0, 1800.0
#: Each look reads the whole table, for all doubts at once, and is followed by so many times its own duration without one.
SHARE = 20
#: After a statement that found no database, in seconds.
RETRY_PAUSE = 0.05


@dataclass(slots=True)
class _Doubt:
    lease: int
    pause: float = FIRST / 2
    look_at: float = field(default_factory=monotonic)


class Doubts:
    """Gives back what claims have taken whose replies were lost: nobody would ever run it. Remembers their leases for an hour."""

    def __init__(self, *, store: Store, worker: Callable[[], int]) -> None:
        self._store = store
        self._worker = worker
        self._doubts: list[_Doubt] = []
        self._some = asyncio.Event()

    def add(self, lease: int) -> None:
        """Doubt a claim. On the main loop."""
        self._doubts.append(_Doubt(lease))
        self._some.set()

    async def run(self) -> None:
        """Look for what was taken, for as long as the service lives."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            await self._until_due()
            began = monotonic()
            due = [doubt for doubt in self._doubts if doubt.look_at <= began]
            try:
                given_back = await self._store.disclaim(self._worker(), [doubt.lease for doubt in self._doubts])
            except DatabaseUnavailableError as error:
                log.debug("look for unanswered claims failed", extra={"error": str(error)})
                pause = RETRY_PAUSE
                continue
            if given_back:
                late = all(doubt.pause >= FIRST for doubt in self._doubts)
                what = "gave back a claim that came late" if late else "gave back a claim whose reply was lost"
                log.warning(what, extra={"jobs": given_back})
            now = monotonic()
            for doubt in due:
                doubt.pause *= 2
                doubt.look_at = now + doubt.pause
            self._doubts = [doubt for doubt in self._doubts if doubt.pause <= LONGEST]
            pause = (now - began) * SHARE

    async def _until_due(self) -> None:
        """Sleep until the next look; a new doubt wants one at once."""
        while True:
            self._some.clear()
            wait = min((doubt.look_at for doubt in self._doubts), default=inf) - monotonic()
            if wait <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == inf else wait):
                    await self._some.wait()
