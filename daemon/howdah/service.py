"""A worker's life in order: build, start, work, drain, leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from howdah.drain import ACK_GRACE, CANCEL_GRACE, Drain
from howdah.errors import ConfigError, DatabaseUnavailableError, LifespanError
from howdah.garbage import spare_what_stays
from howdah.lifeline import HUNG
from howdah.lifespans import LEAVE_GRACE
from howdah.logs import set_worker
from howdah.ossignals import OSSignals, describe_tasks
from howdah.parts import Parts
from howdah.patience import insist
from howdah.scratch import find_scratch
from howdah.version import __version__
from howdah.vitals import PULSE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from howdah.config import Config
    from howdah.registry import Registry

log = logging.getLogger("howdah.service")

#: How often the limits of a life are looked at, in seconds.
LIMITS_INTERVAL = 0.05
#: For the words of parting, to the database and to the lifeline, in seconds.
LAST_WORDS = 3.0
#: For the last reports of errors, in seconds.
REPORT_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When to leave without being told: for cron hosts and tests."""

    until_empty: bool = False
    max_jobs: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did in its life."""

    processed: int
    dead: int
    failed: bool
    error: BaseException | None = None


class Service:
    """One worker, from its first connection to its last word.

    A `guest` lives in somebody else's process, such as a test's: it takes no signals, opens no port and never ends the process.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        limits: Limits | None = None,
        reread: Callable[[], Config] | None = None,
        guest: bool = False,
    ) -> None:
        self._config = config
        self._registry = registry
        self._limits = limits or Limits()
        self._guest = guest
        self._reread = reread or (lambda: config)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._built = asyncio.Event()

    async def run(self) -> Report:
        """Live: work until told to stop, drain, leave. Raises SchemaError, ConfigError; the report says how it went."""
        find_scratch()
        # Who leaves when nothing is left makes no new work: neither a cron host's nor a test's worker.
        schedules = not self._guest and not self._limits.until_empty
        self._parts = Parts(self._config, self._registry, on_failure=self._fail, guest=self._guest, schedules=schedules)
        self._built.set()
        with nullcontext() if self._guest else OSSignals(self._signal_calls(), at_once=self._note_signal):
            try:
                if await self._start():
                    await self._work()
            finally:
                ended = await self._drain()
                clean = await self._leave() and ended
        if not clean and not self._guest:
            # A task that swallows its cancellation would hold up the loop's end for good.
            log.error("handlers do not end, leaving by force")
            logging.shutdown()
            os._exit(HUNG)
        return Report(*self._parts.metrics.count_finished(), failed=self._failure is not None, error=self._failure)

    async def ready(self) -> None:
        """Wait until the worker has claimed for the first time."""
        await self._built.wait()
        await self._parts.claimed.wait()

    def stop(self, why: str = "told to") -> None:
        """Begin to drain; called again, release everything at once."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            log.info("draining", extra={"why": why})
            self._stop.set()

    # -- start

    async def _start(self) -> bool:
        """Come into being: schema, kinds, lifespans, the worker's row, the lifeline. False: told to stop meanwhile."""
        parts = self._parts
        first = (parts.standing.check_schema, parts.standing.check_server)
        for step in (*first, self._register, partial(parts.store.make_partitions, 1)):
            if not await insist(step, self._stop):
                return False
        # Before anybody knows of this worker: one whose lifespans fail has never been there.
        await parts.lifespans.enter(self._stop)
        if self._stop.is_set():
            return False
        if not await insist(parts.standing.enter, self._stop):
            return False
        await parts.lifeline.start()
        if not self._guest:
            spare_what_stays()
        log.info(
            "started",
            extra={
                "version": __version__,
                "worker": parts.vitals.worker,
                "queues": dict(self._config.queues),
                "kinds": self._registry.kinds,
                "address": parts.endpoint.address,
            },
        )
        parts.notifier.ready("working")
        return True

    async def _register(self) -> None:
        for name in await self._parts.store.register(self._registry.registrations(), self._registry.revision()):
            log.warning(
                "the schedule that a handler declares is not used: one was made by hand", extra={"schedule": name}
            )

    # -- work

    async def _work(self) -> None:
        """Run every part until somebody says stop, or one of them dies: then the service stops with its reason."""
        parts = self._parts
        runs = {
            "claimer": parts.claimer.run(),
            "limited": parts.limited.run(),
            "suspects": parts.suspects.run(),
            "acker": parts.acker.run(),
            "chainer": parts.chainer.run(),
            "executor": parts.executor.watch(),
            "reporter": parts.reporter.run(),
            "canceller": parts.canceller.run(),
            "maintenance": parts.maintenance.run(),
            "doubts": parts.doubts.run(),
            "scout": parts.scout.run(),
            "scheduler": parts.scheduler.run(),
            "census": parts.census.run(),
            "standing": parts.standing.run(),
            "lifespans": parts.lifespans.run(),
            "pulse": self._beat_pulse(),
        }
        if self._limits != Limits():
            runs["life"] = self._mind_limits()
        self._tasks = {name: asyncio.create_task(run, name=name) for name, run in runs.items()}
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({*self._tasks.values(), stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            if (error := task.exception()) is not None:
                self._fail(error)
        stop.cancel()

    async def _beat_pulse(self) -> None:
        vitals = self._parts.vitals
        while True:
            due = time.monotonic() + PULSE
            await asyncio.sleep(PULSE)
            vitals.pulse = time.monotonic()
            vitals.working = self._parts.claimed.is_set()
            self._parts.metrics.fold()
            vitals.lags.append(max(vitals.pulse - due, 0.0))

    async def _mind_limits(self) -> None:
        """Stop when the limits of this life are reached."""
        limits, began = self._limits, time.monotonic()
        await self._parts.claimed.wait()
        while True:
            if limits.max_seconds is not None and time.monotonic() - began >= limits.max_seconds:
                self.stop("max seconds")
            elif limits.max_jobs is not None and self._parts.metrics.count_finished()[0] >= limits.max_jobs:
                self.stop("max jobs")
            elif limits.until_empty and await self.is_empty():
                self.stop("empty")
            if self._stop.is_set():
                return
            await asyncio.sleep(LIMITS_INTERVAL)

    async def is_empty(self) -> bool:
        """Tell whether nothing runs here and nothing is left that could, without waiting for a time to come."""
        parts = self._parts
        if parts.acker.backlog or any(slots.running or slots.hand for slots in parts.slots.values()):
            return False
        try:
            return await parts.store.idle(list(parts.slots), self._registry.kinds)
        except DatabaseUnavailableError:
            return False

    def _fail(self, error: BaseException) -> None:
        """Stop because something broke; the exit code says so."""
        if self._failure is None:
            self._failure = error
            log.error("stopping: %s", error, exc_info=error)
        self._stop.set()

    # -- signals

    def _signal_calls(self) -> dict[signal.Signals, Callable[[], None]]:
        claimer = self._parts.claimer
        return {
            signal.SIGTERM: lambda: self.stop("SIGTERM"),
            signal.SIGINT: lambda: self.stop("SIGINT"),
            signal.SIGQUIT: self._quit,
            signal.SIGTSTP: lambda: claimer.hold("SIGTSTP"),
            signal.SIGCONT: lambda: claimer.go_on("SIGTSTP"),
            signal.SIGTTIN: self._log_tasks,
            signal.SIGHUP: self._reload,
        }

    def _note_signal(self, number: signal.Signals) -> None:
        """Let the lifeline know of a drain that the main loop may be too busy to begin."""
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            again = self._parts.vitals.leave_by is not None
            self._set_deadlines(0.0 if again or number == signal.SIGQUIT else self._config.drain_timeout)

    def _quit(self) -> None:
        self.stop("SIGQUIT")
        self._hurry.set()

    def _log_tasks(self) -> None:
        in_hand = {name: [job.id for job in slots.hand] for name, slots in self._parts.slots.items()}
        running = sorted(self._parts.executor.running)
        log.warning("tasks", extra={"running": running, "in_hand": in_hand, "stacks": describe_tasks()})

    def _reload(self) -> None:
        """Read the settings again; what can change while jobs run does: log level, slots, drain timeout."""
        self._parts.notifier.reloading()
        try:
            fresh = self._reread()
        except ConfigError as error:
            log.error("settings not changed: %s", error)  # noqa: TRY400  # the sentence says it all
        else:
            logging.getLogger().setLevel(fresh.log_level.upper())
            self._parts.executor.verbose = log.isEnabledFor(logging.DEBUG)
            for name, slots in self._parts.slots.items():
                slots.resize(fresh.queues.get(name, slots.size))
            self._config = self._config.model_copy(
                update={"drain_timeout": fresh.drain_timeout, "log_level": fresh.log_level}
            )
            sizes = {name: slots.size for name, slots in self._parts.slots.items()}
            log.info("settings read again", extra={"queues": sizes})
        self._parts.notifier.ready("working")

    # -- drain and leave

    async def _drain(self) -> bool:
        """Claim no more and end what runs; tells whether all of it has ended."""
        if not self._tasks:
            return True
        parts = self._parts
        timeout = 0.0 if self._failure is not None else self._config.drain_timeout
        parts.vitals.draining = True
        self._set_deadlines(0.0 if self._hurry.is_set() else timeout)
        parts.metrics.draining.set(1)
        parts.claimer.stop()
        parts.limited.stop()
        parts.suspects.stop()
        # The claims that are on their way must be known before the hand is given back.
        await asyncio.gather(
            *(self._within(asyncio.shield(self._tasks[name])) for name in ("claimer", "limited", "suspects"))
        )
        drain = Drain(
            slots=parts.slots,
            executor=parts.executor,
            acker=parts.acker,
            release=parts.release,
            notifier=parts.notifier,
            timeout=timeout,
            hurry=self._hurry,
        )
        return await drain.run()

    async def _leave(self) -> bool:
        """Leave the lifespans, then say goodbye and hang up; tells whether everything has ended."""
        await self._parts.errors.settled(REPORT_GRACE)
        left = await self._parts.lifespans.leave()
        if not left:
            self._failure = self._failure or LifespanError(", ".join(self._registry.lifespans), "could not be left")
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._parts.vitals.worker:
            await self._within(self._parts.store.leave(self._parts.vitals.worker))
        await self._parts.close()
        processed, dead = self._parts.metrics.count_finished()
        log.info("stopped", extra={"processed": processed, "dead": dead})
        set_worker(None)  # a guest's process lives on
        return left is not None

    def _set_deadlines(self, timeout: float) -> None:
        """Tell the lifeline when to end by force a drain of so many seconds; one that was told before may only get shorter."""
        if self._guest:
            return
        vitals, cancelled = self._parts.vitals, time.monotonic() + timeout + CANCEL_GRACE
        vitals.turn_by = min(vitals.turn_by or cancelled, cancelled)
        vitals.leave_by = vitals.turn_by + ACK_GRACE + REPORT_GRACE + LEAVE_GRACE + 3 * LAST_WORDS

    async def _within(self, wait: Awaitable[object]) -> None:
        """Wait, but not long: on the way out nothing may hold us, and what fails now changes nothing."""
        try:
            async with asyncio.timeout(LAST_WORDS):
                await wait
        except (TimeoutError, OSError, asyncpg.PostgresError, DatabaseUnavailableError) as error:
            log.warning("left something behind on the way out", extra={"error": repr(error)})
