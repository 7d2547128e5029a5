"""The upkeep: what is due or has nothing to wait for becomes ready, schedules are told of, dead workers' jobs come back, history has its days."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from howdah.errors import DatabaseUnavailableError
from howdah.evenness import Evenness

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.metrics import Metrics
    from howdah.store import Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.maintenance")

#: Jobs made ready, and keys coalesced, in one statement.
PROMOTE_BATCH = 1000
#: The longest time between looks at what is due, in seconds, hearing or deaf: the alarm is set by what is known.
DUE_INTERVAL, DEAF_DUE_INTERVAL = 15.0, 1.0
#: After something became due, looks begin at so many seconds and grow by half.
FIRST_DUE_POLL, DUE_POLL_GROWTH = 0.05, 1.5
#: A look that does not come back full is followed by so many times its own duration without one: behind a snapshot that is held open it has to pass
#: over all that became due since.
DUE_SHARE = 20
#: Looks at what waits for other jobs, in seconds: acks let it go at once, and what they pass over is told by the word `settle`. Each
#: look reads all that waits, so one that finds little gets a twentieth of the time.
SETTLE_INTERVAL, DEAF_SETTLE_INTERVAL, SETTLE_SHARE = 30.0, 1.0, 20
SETTLE_BATCH = 10_000
RESCUE_BATCH = 10_000
ORPHAN_INTERVAL = 300.0
HISTORY_INTERVAL, HISTORY_AHEAD = 3600.0, 14
#: The same for a worker that does not lead: soon after its start, when its first beat may not have told yet, and then now and then.
FIRST_HISTORY_INTERVAL, FOLLOWER_INTERVAL = 1.0, 300.0


class Maintenance:
    """Harmless when several workers do it at once; what one can do for all is done by the worker that leads."""

    def __init__(
        self,
        *,
        store: Store,
        vitals: Vitals,
        metrics: Metrics,
        worker: Callable[[], int],
        ttl: float,
        history_days: int,
        on_ready: Callable[[], None],
        on_suspects: Callable[[], None],
        patience: Callable[[], float | None],
        on_schedules: Callable[[], None],
        on_limited: Callable[[], None],
    ) -> None:
        """`patience`: for how long this worker leaves schedules that are due to others; None: for ever."""
        self._store = store
        self._vitals = vitals
        self._metrics = metrics
        self._worker = worker
        self._ttl = ttl
        self._history_days = history_days
        self._on_ready = on_ready
        self._on_suspects = on_suspects
        self._patience = patience
        self._on_schedules = on_schedules
        self._on_limited = on_limited
        self._history_pause = FIRST_HISTORY_INTERVAL
        self._evenness = Evenness()
        self._stir = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._unsettled = asyncio.Event()

    def settle(self) -> None:
        """Say that something may have nothing left to wait for. On the main loop."""
        self._unsettled.set()

    def due(self, delay: float = 0.0) -> None:
        """Say that something becomes due in so many seconds, perhaps earlier than anything known. On the main loop.

        It is there to be seen: the look that an earlier alarm brings finds it, and says when to look next.
        """
        if delay <= 0:
            self._stir.set()
        elif delay < DUE_INTERVAL:  # what is due later is seen by the looks before
            loop = asyncio.get_running_loop()
            if self._alarm is not None and loop.time() < self._alarm.when():
                if self._alarm.when() <= loop.time() + delay:
                    return
                self._alarm.cancel()
            self._alarm = loop.call_later(delay, self._stir.set)

    async def run(self) -> None:
        """Keep house until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_due(), name="due")
            group.create_task(self._keep_settled(), name="settle")
            group.create_task(self._forever(self._rescue), name="rescue")
            group.create_task(self._forever(self._keep_history), name="history")
            group.create_task(self._forever(self._sweep_orphans), name="orphans")

    async def _keep_due(self) -> None:
        """Promote and coalesce at the right moment: the statements say when the next one is.

        After some were made ready, looks come often at first and then ever more seldom: what was enqueued with a time while an
        earlier one was known, and is committed after that one, has set no alarm.
        """
        spell, last_spent = DUE_INTERVAL, 0.0
        while True:
            self._stir.clear()
            began = monotonic()
            pause = 0.0
            longest = DUE_INTERVAL if self._vitals.listening else DEAF_DUE_INTERVAL
            try:
                made, next_in = await self._make_ready()
                spell = FIRST_DUE_POLL if made else spell * DUE_POLL_GROWTH
                if made < PROMOTE_BATCH:
                    # The cheaper of the last two, as for claims: one that waited for the database says nothing.
                    spent = monotonic() - began
                    pause, last_spent = min(spent, last_spent, longest / DUE_SHARE) * DUE_SHARE, spent
            except DatabaseUnavailableError as error:
                log.debug("promotion failed", extra={"error": str(error)})
                next_in = DEAF_DUE_INTERVAL
            spell = min(spell, longest)
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(min(next_in, spell) - pause, 0.0)):
                    await self._stir.wait()

    async def _make_ready(self) -> tuple[int, float]:
        """Make ready what is due; gives how many jobs, and the seconds until the next is due."""
        made, nexts, schedule, limited = await self._store.make_ready(PROMOTE_BATCH, self._patience())
        if made:
            self._on_ready()
        if limited:
            self._on_limited()
        if schedule is not None and schedule <= 0:
            self._on_schedules()  # and who does them says when it is done
        elif schedule is not None:
            nexts.append(schedule)
        # A millisecond late rather than early: an early look finds nothing and has to come again.
        return made, min((max(moment, 0.0) + 0.001 for moment in nexts), default=DUE_INTERVAL)

    async def _keep_settled(self) -> None:
        """Let go what waits for nothing: on the word, and now and then."""
        while True:
            self._unsettled.clear()
            began = monotonic()
            longest = SETTLE_INTERVAL if self._vitals.listening else DEAF_SETTLE_INTERVAL
            try:
                found, next_in = await self._store.settle(SETTLE_BATCH)
                if found:
                    self._on_ready()
                if next_in == 0:
                    continue  # there is more to let go, which is no waste of time
                longest = min(next_in or longest, longest)
            except DatabaseUnavailableError as error:
                log.debug("settling failed", extra={"error": str(error)})
            await asyncio.sleep((monotonic() - began) * SETTLE_SHARE)
            with suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await self._unsettled.wait()

    async def _rescue(self) -> float:
        """Take back the jobs of dead workers; gives the seconds until the next worker can be dead."""
        sent = monotonic()
        dead, next_in, clock = await self._store.rescue(
            RESCUE_BATCH, self._evenness.expected(), self._evenness.seconds(), rescuer=self._worker()
        )
        if step := self._evenness.note(clock, sent=sent, received=monotonic()):
            log.warning("the database's clock was set", extra={"seconds": round(step, 1)})
        for worker in dead:
            self._metrics.rescued.inc(worker["rescued"])
            self._metrics.buried.inc(worker["buried"])
            log.warning(
                "rescued",
                extra={
                    "worker": worker["worker"],
                    "name_of_worker": worker["name"],
                    "jobs": worker["rescued"],
                    "buried": worker["buried"],
                    "beat_age": round(worker["beat_age"], 1),
                },
            )
        if any(worker["rescued"] for worker in dead):
            self._on_suspects()
            return 0.1
        return min(max(next_in or self._ttl, 0.1), self._ttl * 2 / 3)

    async def _keep_history(self) -> float:
        """Have partitions ahead, drop old ones."""
        await self._store.make_partitions(HISTORY_AHEAD)
        if not self._vitals.leads:
            pause, self._history_pause = self._history_pause, FOLLOWER_INTERVAL
            return pause
        for name in await self._store.drop_partitions(max(self._history_days, 1)):
            log.info("dropped history", extra={"partition": name})
        return HISTORY_INTERVAL

    async def _sweep_orphans(self) -> float:
        if self._vitals.leads and await self._store.rescue_orphans():
            log.warning("found leases of workers without a row; they will be rescued")
        return ORPHAN_INTERVAL

    async def _forever(self, duty: Callable[[], object]) -> None:
        """Do a duty again and again; it gives the pause until the next time."""
        while True:
            try:
                pause = await duty()  # type: ignore[misc]  # every duty is a coroutine function that gives seconds
            except DatabaseUnavailableError as error:
                log.debug("upkeep failed", extra={"error": str(error)})
                pause = DEAF_DUE_INTERVAL
            await asyncio.sleep(pause)
