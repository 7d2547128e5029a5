"""The worker's standing with the others: it enters, doubts itself when its beats do not arrive, and enters again."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.errors import DatabaseUnavailableError, SchemaError
from howdah.logs import set_worker
from howdah.queries import sql_folder
from howdah.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from howdah.claimer import Claimer
    from howdah.executor import Executor
    from howdah.job import Attempt, Job
    from howdah.slots import QueueSlots
    from howdah.store import Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.standing")

#: How often the worker asks itself whether its beats still arrive, in seconds, and at most in parts of the ttl.
DOUBT_INTERVAL, DOUBT_PART = 0.25, 20
#: Without a beat for these parts of the ttl a worker claims no more, and lets its jobs go: at the whole, others take them.
HOLD_AT, LET_GO_AT = 1 / 2, 5 / 6
#: Between two looks at what the database thinks that we hold, in seconds.
LOOK_TWICE = 1.0
#: Such looks read the whole table: so many times their duration goes by before the next.
COMPARE_SHARE = 20

#: What PostgreSQL's kin may lack, its name, and how the engine goes on without.
WITHOUT = {
    "advisory_locks": ("advisory locks", "rows of howdah.locks are locked instead"),
    "notifications": ("LISTEN and NOTIFY", "jobs are found by polling"),
}

SILENT, DEAD = "no beat arrives", "taken for dead"


class Standing:
    """Decides by this worker's own clock, which only serves to know that it has been silent too long."""

    def __init__(
        self,
        *,
        store: Store,
        vitals: Vitals,
        claimer: Claimer,
        executor: Executor,
        slots: Mapping[str, QueueSlots],
        release: Callable[[Iterable[Job[Any]]], None],
        outcomes: Callable[[], Iterable[Attempt]],
        ttl: float,
        kinds: Sequence[str],
    ) -> None:
        """`outcomes`: those that are not written yet."""
        self._store = store
        self._vitals = vitals
        self._claimer = claimer
        self._executor = executor
        self._slots = slots
        self._release = release
        self._ttl = ttl
        self._kinds = kinds
        self._outcomes = outcomes
        self._lost = 0
        self._interval = min(DOUBT_INTERVAL, ttl / DOUBT_PART)
        self._doubted = asyncio.Event()
        self._doubted_at = 0.0

    async def check_schema(self) -> None:
        """Raise SchemaError unless this release and the database's schema fit."""
        try:
            version, oldest = await self._store.schema_check()
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            raise SchemaError("the database has no howdah schema: run howdah migrate") from None
        except asyncpg.InsufficientPrivilegeError as error:
            raise SchemaError(f"{error}: grant howdah_worker to the user that the worker logs in as") from None
        newest = len(list((sql_folder() / "migrations").glob("*.sql")))
        if version < newest:
            raise SchemaError(f"the schema is at version {version}, this release needs {newest}: run howdah migrate")
        if _release(__version__) < _release(oldest):
            raise SchemaError(
                f"the schema asks for howdah {oldest} or newer, this is {__version__}: install a newer one"
            )

    async def check_server(self) -> None:
        """Say what the server lacks and how it goes on without. Raises SchemaError if the schema relies on it all the same."""
        for missing, needed in (await self._store.lacks()).items():
            name, instead = WITHOUT[missing]
            if needed:
                raise SchemaError(
                    f"the server has no {name} for this login, and the schema relies on them: stop all workers, then howdah migrate, "
                    f"or update howdah.settings set {missing} = false"
                )
            log.warning("the server lacks %s: %s", name, instead)

    async def enter(self) -> None:
        """Make the worker's row; its id is new for every life."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._vitals.worker = await self._store.enter(name, __version__, self._ttl, list(self._slots), self._kinds)
        self._vitals.last_beat = time.monotonic()
        set_worker(self._vitals.worker)

    def taken_for_dead(self, worker: int) -> None:
        """Say that the database has no row of this worker any more. On the main loop."""
        self._lost = worker

    def doubt_database(self) -> None:
        """Say that beats go over a new connection, perhaps to a server that took over and lacks what the last one wrote. On the main loop."""
        self._doubted_at = time.monotonic()
        self._doubted.set()

    async def run(self) -> None:
        """Doubt for as long as the service lives."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._doubt_ourselves(), name="doubt")
            group.create_task(self._doubt_the_database(), name="compare")

    async def _doubt_ourselves(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            if self._lost and self._lost == self._vitals.worker:
                await self._enter_again()
            elif self._vitals.beat_age() < self._ttl * HOLD_AT:
                self._claimer.go_on(SILENT)
            else:
                self._claimer.hold(SILENT)
                if self._vitals.beat_age() > self._ttl * LET_GO_AT:
                    self._let_go()

    async def _doubt_the_database(self) -> None:
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            while self._vitals.last_beat < self._doubted_at:  # noqa: ASYNC110  # rare, and the lifeline writes it
                await asyncio.sleep(self._interval)
            cost = 0.0
            try:
                cost = await self._compare()
            except DatabaseUnavailableError as error:
                log.debug("could not compare", extra={"error": str(error)})
                self.doubt_database()
            await asyncio.sleep(cost * COMPARE_SHARE)

    async def _compare(self) -> float:
        """Leave to the rescue what the database thinks that we hold and we know nothing of: our acks of it are lost. Gives the seconds of one look.

        What is missing at two looks is: at one it may be on its way to us, or from a hand to its handler.
        """
        worker = self._vitals.worker
        began = time.monotonic()
        missing = await self._store.held(worker) - self._known()
        cost = time.monotonic() - began
        if not missing:
            return cost
        await asyncio.sleep(LOOK_TWICE)
        missing -= self._known()
        if missing and (forsaken := await self._store.forsake(worker, missing)):
            log.warning(
                "the database has lost what came of jobs, leaving them to the rescue", extra={"jobs": forsaken[:100]}
            )
        return cost

    def _known(self) -> set[tuple[int, int]]:
        jobs = [*self._executor.running.values(), *(job for slots in self._slots.values() for job in slots.hand)]
        return {(job.id, job.lease) for job in jobs} | {(outcome.id, outcome.lease) for outcome in self._outcomes()}

    def _let_go(self) -> None:
        """Release every job while the leases are still ours: a release is no crash."""
        running = self._executor.interrupt()
        waiting = [job for slots in self._slots.values() for job in slots.take_back()]
        self._release(waiting)
        if running or waiting:
            log.warning(
                "no beat arrived for long, releasing all jobs", extra={"running": running, "in_hand": len(waiting)}
            )

    async def _enter_again(self) -> None:
        """Drop everything, since others have it, and begin a new life."""
        log.warning("taken for dead, entering again", extra={"worker": self._lost})
        self._claimer.hold(DEAD)
        self._executor.interrupt()
        for slots in self._slots.values():
            slots.take_back()
        try:
            await self.enter()
        except DatabaseUnavailableError as error:
            log.debug("could not enter", extra={"error": str(error)})
            return
        self._claimer.go_on(DEAD)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
