"""The scheduler: when schedules want it, fires the slots that have come.

Which slots those are is computed here; whether they are fired is decided by the database, which lets one of all workers fire a row as
it was read. So it does no harm when several do this at once, and nothing when one of them is killed at any point.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import DatabaseUnavailableError, ScheduleError
from howdah.schedules import Timetable, delay_of, plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.metrics import Metrics
    from howdah.store import DueSchedule, Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.scheduler")

#: For so many seconds a worker leaves schedules to the one that leads.
PATIENCE = 2.0
#: Schedules looked at in one go.
BATCH = 100
#: The pause after a look at which something was somebody else's, or went wrong, in seconds: they are looked at again.
PAUSE = 1.0


class Scheduler:
    """Fires what is due, when told that something is; `on_done` hears that there may be a new time to wait for."""

    def __init__(self, *, store: Store, vitals: Vitals, metrics: Metrics, on_done: Callable[[], None]) -> None:
        self._store = store
        self._vitals = vitals
        self._metrics = metrics
        self._on_done = on_done
        self._due = asyncio.Event()
        #: What was said last of each schedule that cannot fire: not every minute again.
        self._said: dict[str, str] = {}

    @property
    def patience(self) -> float:
        """For how long this worker leaves what is due to others: all of them see it at the same moment."""
        return 0.0 if self._vitals.leads else PATIENCE

    def due(self) -> None:
        """Say that some schedule is due. On the main loop."""
        self._due.set()

    async def run(self) -> None:
        """Fire for as long as the service lives."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                alone = await self._fire_all()
            except DatabaseUnavailableError as error:
                log.debug("schedules are not read", extra={"error": str(error)})
                alone = False
            if not alone:
                await asyncio.sleep(PAUSE)
            self._on_done()

    async def _fire_all(self) -> bool:
        """Fire every schedule that is due; tells whether nobody else was at any of them."""
        alone = True
        for schedule in await self._store.due_schedules(self.patience, BATCH):
            try:
                alone = await self._fire(schedule) and alone
            except ScheduleError as error:
                await self._give_up(schedule, str(error))
            except asyncpg.PostgresError as error:
                await self._give_up(schedule, str(error))
                alone = False
            await asyncio.sleep(0)  # what is computed for one holds up no job for long
        return alone

    async def _fire(self, schedule: DueSchedule) -> bool:
        """Make the jobs of one schedule; False: it was somebody else's."""
        told = plan(Timetable(schedule.cron, schedule.time_zone), schedule.missed, schedule.done_until, schedule.now)
        delays = [delay_of(schedule.name, slot, schedule.jitter) for slot in told.slots]
        fired = await self._store.fire_schedule(schedule, told, delays)
        if fired is None:
            return False
        if fired.refusal is not None:
            self._say_problem(schedule, fired.refusal)
            return True
        for outcome, count in (("fired", fired.made), ("overlapped", fired.overlapped), ("missed", told.missed)):
            self._metrics.schedule_slots.labels(outcome).inc(count)
        self._said.pop(schedule.name, None)
        if told.late:
            log.warning(
                "slots were missed",
                extra={
                    "schedule": schedule.name,
                    "policy": schedule.missed,
                    "made_up_for": told.late - told.missed,
                    "given_up": told.missed,
                    "since": schedule.done_until.isoformat(),
                },
            )
        if told.slots:
            log.debug(
                "schedule fired",
                extra={"schedule": schedule.name, "made": fired.made, "overlapped": fired.overlapped},
            )
        return True

    async def _give_up(self, schedule: DueSchedule, problem: str) -> None:
        """Leave a schedule alone for a minute, and let everybody know why."""
        self._say_problem(schedule, problem)
        with suppress(asyncpg.PostgresError):  # what went wrong may keep us from this, too
            await self._store.mark_schedule(schedule, problem)

    def _say_problem(self, schedule: DueSchedule, problem: str) -> None:
        if problem not in {schedule.problem, self._said.get(schedule.name)}:
            log.error("schedule cannot fire", extra={"schedule": schedule.name, "problem": problem})
        self._said[schedule.name] = problem
