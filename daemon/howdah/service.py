"""A worker's life in order: build, start, work, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.acker import Acker
from howdah.canceller import Canceller
from howdah.claimer import Claimer
from howdah.database import Line, set_codecs
from howdah.drain import ACK_GRACE, CANCEL_GRACE, Drain
from howdah.endpoint import Endpoint
from howdah.errors import ConfigError, DatabaseUnavailableError, SchemaError
from howdah.executor import Executor
from howdah.heartbeat import Heartbeat
from howdah.job import Attempt
from howdah.lifeline import HUNG, Lifeline
from howdah.listener import Listener
from howdah.maintenance import Maintenance
from howdah.metrics import Metrics
from howdah.ossignals import OSSignals, describe_tasks
from howdah.processes import Processes
from howdah.queries import sql_folder
from howdah.reporter import Reporter
from howdah.slots import Cap, QueueSlots, RunTimes
from howdah.store import Store
from howdah.systemd import Notifier
from howdah.version import __version__
from howdah.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from howdah.config import Config
    from howdah.registry import Registry

log = logging.getLogger("howdah.service")

#: How often the main loop shows its pulse, in seconds.
PULSE = 0.5
#: How often the worker asks itself whether its beats still arrive, in seconds.
DOUBT_INTERVAL = 0.25
#: At this part of the ttl without a beat a worker lets its jobs go.
LET_GO = 5 / 6
#: For the words of parting, to the database and to the lifeline, in seconds.
LAST_WORDS = 3.0


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


class Service:
    """The composition root: makes every part, and is the only one that knows them all."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        limits: Limits | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        if config.database_url is None:
            raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
        self._config = config
        self._registry = registry
        self._limits = limits or Limits()
        self._reread = reread or (lambda: config)
        self._url: str = config.database_url
        self._metrics = Metrics()
        self._vitals = Vitals()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._claimed = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._entering = False
        self._notifier = Notifier()

    async def run(self) -> Report:
        """Live: work until told to stop, drain, leave. Raises SchemaError, ConfigError; the report says how it went."""
        self._build()
        with OSSignals(self._signal_calls(), at_once=self._note_signal):
            try:
                await self._start()
                await self._work()
            finally:
                clean = await self._drain()
                await self._close()
        if not clean:
            # A task that swallows its cancellation would hold up the loop's end for good.
            log.error("handlers do not end, leaving by force")
            logging.shutdown()
            os._exit(HUNG)
        return self._report()

    def stop(self, why: str = "told to") -> None:
        """Begin to drain; called again, release everything at once."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            log.info("draining", extra={"why": why})
            self._stop.set()

    async def ready(self) -> None:
        """Wait until the worker has claimed for the first time."""
        await self._claimed.wait()

    # -- build and start

    def _build(self) -> None:
        config, metrics, vitals = self._config, self._metrics, self._vitals
        self._loop = asyncio.get_running_loop()
        self._claim_line = self._line("claim", raw_json=True)
        self._ack_line = self._line("ack")
        self._spare_line = self._line("spare")
        self._store = Store(self._spare_line)
        self._threads = ThreadPoolExecutor(max_workers=sum(config.queues.values()), thread_name_prefix="handler")
        self._processes = Processes(config.handlers)
        self._pool: asyncpg.Pool | None = None
        keep_history = config.history_days > 0
        self._acker = Acker(
            store=Store(self._ack_line),
            metrics=metrics,
            keep_history=keep_history,
            on_relief=lambda: self._claimer.wake(),
        )
        self._executor = Executor(
            registry=self._registry,
            metrics=metrics,
            put=self._put,
            write_start=lambda job: self._reporter.write_start(job),
            connection=self._connection,
            threads=self._threads,
            processes=self._processes,
            resources={},
            keep_history=keep_history,
        )
        self._reporter = Reporter(store=self._store, executor=self._executor)
        run_times = RunTimes()
        cap = Cap(config.concurrency) if config.concurrency is not None else None
        self._slots = {
            queue: QueueSlots(
                queue=queue,
                size=size,
                cap=cap,
                run_times=run_times,
                execute=self._executor.execute,
                on_room=lambda name: self._claimer.room(name),
                metrics=metrics,
            )
            for queue, size in config.queues.items()
        }
        self._claimer = Claimer(
            store=Store(self._claim_line),
            slots=self._slots,
            kinds=self._registry.kinds,
            run_times=run_times,
            worker=lambda: vitals.worker,
            is_full=lambda: self._acker.full,
            is_deaf=lambda: not vitals.listening,
            claimed_once=self._claimed,
            metrics=metrics,
            poll_interval=config.poll_interval,
        )
        self._maintenance = Maintenance(
            store=self._store,
            vitals=vitals,
            metrics=metrics,
            ttl=config.lease_ttl,
            history_days=config.history_days,
            on_ready=self._claimer.wake,
            on_suspects=self._claimer.suspects_wait,
        )
        self._canceller = Canceller(
            store=self._store, executor=self._executor, slots=self._slots, put=self._put, vitals=vitals
        )
        self._lifeline = Lifeline(
            build=self._build_lifeline,
            close=self._close_lifeline,
            vitals=vitals,
            notifier=self._notifier,
            hang_timeout=config.hang_timeout,
            on_failure=lambda error: self._from_lifeline(self._fail, error),
        )

    async def _build_lifeline(self) -> list[Callable[[], Awaitable[None]]]:
        """Make the lifeline's parts, on its own loop."""
        config, metrics, vitals = self._config, self._metrics, self._vitals
        self._beat_line = self._line("beat")
        self._ask_line = self._line("ask")
        self._listen_line = Line("listen", config.listen_database_url or self._url, on_reconnect=self._count_reconnect)
        heartbeat = Heartbeat(
            store=Store(self._beat_line),
            vitals=vitals,
            metrics=metrics,
            ttl=config.lease_ttl,
            on_suspects=lambda: self._from_lifeline(self._claimer.suspects_wait),
            on_signals=lambda: self._from_lifeline(self._canceller.look),
            on_taken_for_dead=lambda worker: self._from_lifeline(self._taken_for_dead, worker),
        )
        listener = Listener(
            line=self._listen_line,
            vitals=vitals,
            metrics=metrics,
            queues=frozenset(config.queues),
            on_wake=lambda: self._from_lifeline(self._claimer.wake),
            on_control=lambda word: self._from_lifeline(self._obey, word),
        )
        self._endpoint = Endpoint(
            host=config.http_host,
            port=config.http_port,
            admin_token=config.admin_token,
            store=Store(self._ask_line),
            vitals=vitals,
            metrics=metrics,
            ttl=config.lease_ttl,
            hang_timeout=config.hang_timeout,
        )
        await self._endpoint.open()
        return [heartbeat.run, listener.run, self._endpoint.run]

    async def _close_lifeline(self) -> None:
        for line in (self._beat_line, self._ask_line, self._listen_line):
            await line.close()

    async def _start(self) -> None:
        """Come into being: schema, kinds, the worker's row, the lifeline."""
        config = self._config
        await self._check_schema()
        await self._store.register(self._registry.registrations(), self._registry.revision())
        await self._store.make_partitions(1)
        self._vitals.worker = await self._store.enter(
            f"{socket.gethostname()}:{os.getpid()}",
            __version__,
            config.lease_ttl,
            list(config.queues),
            self._registry.kinds,
        )
        await self._lifeline.start()
        log.info(
            "started",
            extra={
                "version": __version__,
                "worker": self._vitals.worker,
                "queues": dict(config.queues),
                "kinds": self._registry.kinds,
                "address": self._endpoint.address,
            },
        )
        self._notifier.ready("working")

    async def _enter(self) -> int:
        """Make the worker's row; gives its id."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        config = self._config
        return await self._store.enter(name, __version__, config.lease_ttl, list(config.queues), self._registry.kinds)

    async def _check_schema(self) -> None:
        try:
            version, oldest = await self._store.schema_check()
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            raise SchemaError("the database has no howdah schema: run howdah migrate") from None
        newest = len(list((sql_folder() / "migrations").glob("*.sql")))
        if version < newest:
            raise SchemaError(f"the schema is at version {version}, this release needs {newest}: run howdah migrate")
        if _release(__version__) < _release(oldest):
            raise SchemaError(
                f"the schema asks for howdah {oldest} or newer, this is {__version__}: install a newer release"
            )

    # -- work

    async def _work(self) -> None:
        """Run every part until somebody says stop, or one of them dies: then the service stops with its reason."""
        parts = {
            "claimer": self._claimer.run(),
            "acker": self._acker.run(),
            "executor": self._executor.watch(),
            "reporter": self._reporter.run(),
            "maintenance": self._maintenance.run(),
            "canceller": self._canceller.run(),
            "pulse": self._beat_pulse(),
            "doubt": self._doubt(),
        }
        if self._limits != Limits():
            parts["limits"] = self._mind_limits()
        self._tasks = {name: asyncio.create_task(part, name=name) for name, part in parts.items()}
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({*self._tasks.values(), stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            if (error := task.exception()) is not None:
                self._fail(error)
        stop.cancel()

    async def _beat_pulse(self) -> None:
        while True:
            due = self._loop.time() + PULSE
            await asyncio.sleep(PULSE)
            self._vitals.pulse = time.monotonic()
            self._vitals.working = self._claimed.is_set()
            self._metrics.loop_lag.set(max(self._loop.time() - due, 0.0))

    async def _mind_limits(self) -> None:
        """Stop when the limits of this life are reached."""
        limits, queues = self._limits, list(self._config.queues)
        began = self._loop.time()
        await self._claimed.wait()
        while True:
            if limits.max_seconds is not None and self._loop.time() - began >= limits.max_seconds:
                self.stop("max seconds")
            elif limits.max_jobs is not None and self._count_finished()[0] >= limits.max_jobs:
                self.stop("max jobs")
            elif limits.until_empty and self._is_quiet() and await self._is_empty(queues):
                self.stop("empty")
            await asyncio.sleep(0.05)

    def _is_quiet(self) -> bool:
        return not self._acker.backlog and not any(slots.running or slots.hand for slots in self._slots.values())

    async def _is_empty(self, queues: list[str]) -> bool:
        try:
            return await self._store.idle(queues, self._registry.kinds)
        except DatabaseUnavailableError:
            return False

    # -- words from elsewhere

    def _signal_calls(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: lambda: self.stop("SIGTERM"),
            signal.SIGINT: lambda: self.stop("SIGINT"),
            signal.SIGQUIT: self._quit,
            signal.SIGTSTP: lambda: self._claimer.hold("SIGTSTP"),
            signal.SIGCONT: lambda: self._claimer.go_on("SIGTSTP"),
            signal.SIGTTIN: self._log_tasks,
            signal.SIGHUP: self._reload,
        }

    def _note_signal(self, number: signal.Signals) -> None:
        """Let the lifeline know of a drain that the main loop may be too busy to begin."""
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} and self._vitals.leave_by is None:
            patience = self._config.drain_timeout + CANCEL_GRACE + ACK_GRACE + 2 * LAST_WORDS
            self._vitals.leave_by = time.monotonic() + patience

    def _quit(self) -> None:
        self.stop("SIGQUIT")
        self._hurry.set()

    def _log_tasks(self) -> None:
        jobs = {name: [job.id for job in slots.hand] for name, slots in self._slots.items()}
        log.warning(
            "tasks", extra={"running": sorted(self._executor.running), "in_hand": jobs, "stacks": describe_tasks()}
        )

    def _reload(self) -> None:
        """Read the settings again; what can change while jobs run does: log level, slots, drain timeout."""
        self._notifier.reloading()
        try:
            fresh = self._reread()
        except ConfigError as error:
            log.error("settings not changed: %s", error)  # noqa: TRY400  # the sentence says it all
        else:
            logging.getLogger().setLevel(fresh.log_level.upper())
            for name, slots in self._slots.items():
                slots.resize(fresh.queues.get(name, slots.size))
            self._config = self._config.model_copy(
                update={"drain_timeout": fresh.drain_timeout, "log_level": fresh.log_level}
            )
            log.info("settings read again", extra={"queues": {name: slots.size for name, slots in self._slots.items()}})
        self._notifier.ready("working")

    def _put(self, attempt: Attempt) -> None:
        self._acker.put(attempt)
        if attempt.delay is not None:
            self._maintenance.due(attempt.delay)

    def _from_lifeline(self, call: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the main loop is closed: nobody is left to tell
            log.debug("a word from the lifeline came too late")

    def _obey(self, word: str) -> None:
        """Do what the control channel says."""
        if word == "due":
            self._maintenance.due()
        elif word == "suspects":
            self._claimer.suspects_wait()
        elif word == "cancel":
            self._canceller.look()

    def _taken_for_dead(self, worker: int) -> None:
        """Others have this worker's jobs: let go of them, and enter again under a new id."""
        if worker == self._vitals.worker and not self._entering:
            self._entering = True
            log.warning("taken for dead, entering again", extra={"worker": worker})
            self._tasks["enter"] = asyncio.create_task(self._enter_again(), name="enter")

    async def _enter_again(self) -> None:
        self._claimer.hold("taken for dead")
        for slots in self._slots.values():
            slots.take_back()
        self._executor.interrupt()
        while True:
            try:
                self._vitals.worker = await self._enter()
                break
            except DatabaseUnavailableError:
                await asyncio.sleep(DOUBT_INTERVAL)
        self._vitals.last_beat = time.monotonic()
        self._entering = False
        self._claimer.go_on("taken for dead")

    async def _doubt(self) -> None:
        """Stop in time when the beats do not arrive: others will take this worker's jobs at the end of the ttl."""
        ttl = self._config.lease_ttl
        let_go = False
        while True:
            await asyncio.sleep(min(DOUBT_INTERVAL, ttl / 20))
            age = self._vitals.beat_age()
            if age < ttl / 2:
                self._claimer.go_on("no beat arrives")
                let_go = False
                continue
            self._claimer.hold("no beat arrives")
            if age > ttl * LET_GO and not let_go:
                let_go = True
                log.warning("no beat arrived for long, releasing all jobs", extra={"age": round(age, 1)})
                for slots in self._slots.values():
                    for job in slots.take_back():
                        self._put(Attempt(job.id, job.lease, "released", None, None))
                self._executor.interrupt()

    def _fail(self, error: BaseException) -> None:
        """Stop because something broke; the exit code says so."""
        if self._failure is None:
            self._failure = error
            log.error("stopping: %s", error, exc_info=error)
        self._stop.set()

    # -- drain and close

    async def _drain(self) -> bool:
        """Claim no more and end what runs; tells whether all of it has ended."""
        if not self._tasks:
            return True
        timeout = 0.0 if self._failure is not None else self._config.drain_timeout
        self._vitals.draining = True
        self._vitals.leave_by = time.monotonic() + timeout + CANCEL_GRACE + ACK_GRACE + LAST_WORDS
        self._metrics.draining.set(1)
        self._claimer.stop()
        # The claim that is on its way must be known before the hand is given back.
        await self._within(asyncio.shield(self._tasks["claimer"]), LAST_WORDS)
        drain = Drain(
            slots=self._slots,
            executor=self._executor,
            acker=self._acker,
            put=self._put,
            notifier=self._notifier,
            timeout=timeout,
            hurry=self._hurry,
        )
        return await drain.run()

    async def _close(self) -> None:
        for slots in self._slots.values():
            slots.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._vitals.worker:
            await self._within(self._store.leave(self._vitals.worker), 2.0)
        await self._lifeline.stop()
        if self._pool is not None:
            await self._within(self._pool.close(), 2.0)
            self._pool.terminate()
        for line in (self._claim_line, self._ack_line, self._spare_line):
            await line.close()
        self._processes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        processed, dead = self._count_finished()
        log.info("stopped", extra={"processed": processed, "dead": dead})

    async def _within(self, wait: Awaitable[Any], seconds: float) -> None:
        """Wait, but no longer than this: on the way out nothing may hold us, and what fails now changes nothing."""
        try:
            async with asyncio.timeout(seconds):
                await wait
        except (
            TimeoutError,
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            DatabaseUnavailableError,
        ) as error:
            log.warning("left something behind on the way out", extra={"error": repr(error)})

    # -- small things

    def _line(self, name: str, *, raw_json: bool = False) -> Line:
        return Line(name, self._url, raw_json=raw_json, on_reconnect=self._count_reconnect)

    def _count_reconnect(self, name: str) -> None:
        self._metrics.reconnects.labels(name).inc()

    def _connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of the handlers' pool, which opens connections as they are needed."""
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._config.pool_size,
                init=set_codecs,
                server_settings={"application_name": "howdah handler"},
            )
        return _Lent(self._pool)

    def _count_finished(self) -> tuple[int, int]:
        processed = dead = 0
        for family in self._metrics.finished.collect():
            for sample in family.samples:
                if sample.name.endswith("_total") and sample.labels["outcome"] != "released":
                    processed += int(sample.value)
                    dead += int(sample.value) if sample.labels["outcome"] == "dead" else 0
        return processed, dead

    def _report(self) -> Report:
        processed, dead = self._count_finished()
        return Report(processed=processed, dead=dead, failed=self._failure is not None)


class _Lent:
    """A connection on loan; the pool itself is opened by the first borrower."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._loan: Any = None

    async def __aenter__(self) -> asyncpg.Connection:
        await self._pool  # opens it once; awaiting an open pool gives it as it is
        self._loan = self._pool.acquire()
        connection: asyncpg.Connection = await self._loan.__aenter__()
        return connection

    async def __aexit__(self, *failure: object) -> None:
        await self._loan.__aexit__(*failure)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
