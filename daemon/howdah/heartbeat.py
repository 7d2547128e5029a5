"""The heartbeat: says every third of the ttl that this worker lives."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.metrics import Metrics
    from howdah.store import Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.heartbeat")


class Heartbeat:
    """Beats on a connection and a loop of its own, so that nothing that the handlers do can hold it up."""

    def __init__(
        self,
        *,
        store: Store,
        vitals: Vitals,
        metrics: Metrics,
        ttl: float,
        on_suspects: Callable[[], None],
        on_signals: Callable[[], None],
        on_taken_for_dead: Callable[[int], None],
    ) -> None:
        self._store = store
        self._vitals = vitals
        self._ttl = ttl
        self._on_suspects = on_suspects
        self._on_signals = on_signals
        self._on_taken_for_dead = on_taken_for_dead
        metrics.heartbeat_age.set_function(vitals.beat_age)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            began = time.monotonic()
            worker = self._vitals.worker
            try:
                answer = await self._store.beat(worker)
            except DatabaseUnavailableError as error:
                log.debug("beat failed", extra={"error": str(error)})
                await asyncio.sleep(min(self._ttl / 10, 1.0))
                continue
            if answer is None:
                self._on_taken_for_dead(worker)
            else:
                # The moment before the call: the database took the beat some time after it.
                self._vitals.last_beat = began
                self._vitals.leads = answer.leads
                if answer.suspects:
                    self._on_suspects()
                if answer.signals:
                    self._on_signals()
            # From beat to beat, not from answer to beat: over a slow wire they would be too few.
            await asyncio.sleep(max(began + self._ttl / 3 - time.monotonic(), 0))
