"""Claims that nobody answered for, looked for again and again: one may still be on its way when it has been given back.

What a slow wire or a slow server holds back can be done long after its sender has hung up. The jobs of such a claim would be this
worker's, which lives, and would be run by nobody.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.store import Store

log = logging.getLogger("howdah.doubts")

#: Looks come after so many seconds, and then after twice as many each time; each reads the whole table. After the longest pause it is enough.
FIRST, LONGEST = 1.0, 1800.0
#: After a statement that found no database, in seconds.
RETRY_PAUSE = 1.0


@dataclass(slots=True)
class _Doubt:
    lease: int
    pause: float = FIRST
    look_at: float = field(default_factory=lambda: monotonic() + FIRST)


class Doubts:
    """Remembers the leases of claims whose replies were lost, for an hour."""

    def __init__(self, *, store: Store, worker: Callable[[], int]) -> None:
        self._store = store
        self._worker = worker
        self._doubts: list[_Doubt] = []
        self._some = asyncio.Event()

    def add(self, lease: int) -> None:
        """Doubt a claim that has been given back once. On the main loop."""
        self._doubts.append(_Doubt(lease))
        self._some.set()

    async def run(self) -> None:
        """Give back what comes late, for as long as the service lives."""
        while True:
            if not self._doubts:
                self._some.clear()
                await self._some.wait()
            await asyncio.sleep(min(doubt.look_at for doubt in self._doubts) - monotonic())
            now = monotonic()
            due = [doubt for doubt in self._doubts if doubt.look_at <= now]
            try:
                given_back = await self._store.disclaim(self._worker(), [doubt.lease for doubt in due])
            except DatabaseUnavailableError as error:
                log.debug("look for late claims failed", extra={"error": str(error)})
                await asyncio.sleep(RETRY_PAUSE)
                continue
            if given_back:
                log.warning("gave back a claim that came late", extra={"jobs": given_back})
            for doubt in due:
                doubt.pause *= 2
                doubt.look_at = monotonic() + doubt.pause
            self._doubts = [doubt for doubt in self._doubts if doubt.pause <= LONGEST]
