"""The parts of a worker, made and joined: who knows whom is decided here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from howdah.acker import Acker
from howdah.canceller import Canceller
from howdah.census import Census
from howdah.chainer import Chainer
from howdah.claimer import Claimer
from howdah.database import CALL_TIMEOUT, Line
from howdah.doubts import Doubts
from howdah.endpoint import Endpoint
from howdah.error_reporters import ErrorReporters
from howdah.errors import ConfigError
from howdah.executor import Executor
from howdah.heartbeat import Heartbeat
from howdah.lifeline import Lifeline
from howdah.lifespans import Lifespans
from howdah.limited import LimitedClaimer
from howdah.listener import Listener
from howdah.maintenance import Maintenance
from howdah.metrics import Metrics
from howdah.outcomes import released
from howdah.pool import HandlerPool
from howdah.processes import Processes
from howdah.reporter import Reporter
from howdah.scheduler import Scheduler
from howdah.scout import Scout
from howdah.services import WorkerServices
from howdah.slots import Cap, QueueSlots, RunTimes
from howdah.standing import Standing
from howdah.store import Store
from howdah.suspects import SuspectLane
from howdah.systemd import Notifier
from howdah.tracing import start_tracing
from howdah.transactions import Transactions
from howdah.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from howdah.chaining import Chain
    from howdah.config import Config
    from howdah.job import Attempt, Job
    from howdah.registry import Registry

log = logging.getLogger("howdah.parts")

#: How long a scrape waits for the main loop, in seconds: a little, or a standstill would hide the metrics that show it.
FOLD_PATIENCE = 0.1
#: A call that is not answered within these parts of the ttl is given up, its connection with it: what a claim brought must not lie
#: for a ttl without anybody who runs it, and a beat must have time for another before half of the ttl has gone by without one.
CALL_PART, BEAT_PART = 1 / 2, 1 / 4
#: But never within less than so many seconds, except for beats.
LEAST_PATIENCE = 1.0


class Parts:
    """One worker's parts. The main loop's are made at once, the lifeline's on its own loop when it starts."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        on_failure: Callable[[BaseException], None],
        guest: bool = False,
        schedules: bool = True,
    ) -> None:
        """`schedules`: fire them, too."""
        if config.database_url is None:
            raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
        self._config = config
        self._guest = guest
        self._url: str = config.database_url
        self._loop = asyncio.get_running_loop()
        self._lines = {
            name: self._line(name, raw_json=name in {"claim", "limited", "step"})
            for name in ("claim", "limited", "ack", "chain", "spare", "step", "count")
        }
        self._threads = ThreadPoolExecutor(max_workers=sum(config.queues.values()), thread_name_prefix="handler")
        self._processes = Processes(config.handlers, log_style=config.log_format, log_level=config.log_level)
        self._pool = HandlerPool(config.pool_database_url or self._url, config.pool_size)
        self.lifespans = Lifespans(registry.lifespans)
        self.errors = ErrorReporters(registry.error_reporters)
        self.tracing = start_tracing()
        self.metrics = Metrics(
            queues=config.queues,
            kinds={kind: found.queue or "default" for kind in registry.kinds if (found := registry.get(kind))},
        )
        self.vitals = Vitals()
        self.notifier = Notifier()
        self.claimed = asyncio.Event()
        self.store = Store(self._lines["spare"])
        self.chainer = Chainer(
            store=Store(self._lines["chain"]),
            metrics=self.metrics,
            keep_history=config.history_days > 0,
            on_written=self._note_written,
        )
        self.acker = Acker(
            store=Store(self._lines["ack"]),
            chainer=self.chainer,
            metrics=self.metrics,
            keep_history=config.history_days > 0,
            on_relief=self._wake,
            on_written=self._note_written,
        )
        self.metrics.loop_lag.set_function(self.vitals.loop_lag)
        self.executor = Executor(
            registry=registry,
            metrics=self.metrics,
            put=self.put,
            write_start=lambda job: self.reporter.write_start(job),
            services=WorkerServices(steps=Store(self._lines["step"]), connection=self._pool.lend),
            transactions=Transactions(
                connection=self._pool.lend,
                keep_history=config.history_days > 0,
                on_written=self._note_written,
                patience=min(max(config.lease_ttl, LEAST_PATIENCE), CALL_TIMEOUT),
            ),
            threads=self._threads,
            processes=self._processes,
            resources=self.lifespans.resources,
            errors=self.errors,
            tracing=self.tracing,
        )
        self.reporter = Reporter(store=self.store, executor=self.executor)
        run_times = RunTimes()
        cap = Cap(config.concurrency) if config.concurrency is not None else None
        self.slots = {
            queue: QueueSlots(
                queue=queue,
                size=size,
                cap=cap,
                run_times=run_times,
                begin=self.executor.begin,
                on_room=self._note_room,
                on_failure=on_failure,
                metrics=self.metrics,
            )
            for queue, size in config.queues.items()
        }
        self.doubts = Doubts(store=Store(self._lines["count"]), worker=lambda: self.vitals.worker)
        self.scout = Scout(store=Store(self._lines["count"]), on_return=lambda: self.claimer.look())
        self.claimer = Claimer(
            store=Store(self._lines["claim"]),
            slots=self.slots,
            kinds=registry.kinds,
            run_times=run_times,
            worker=lambda: self.vitals.worker,
            is_full=lambda: self.acker.ask_full(),
            is_deaf=lambda: not self.vitals.listening,
            runs_suspects=lambda: self.suspects.busy,
            give_back=self.release,
            on_doubt=self.doubts.add,
            scout=self.scout,
            claimed_once=self.claimed,
            metrics=self.metrics,
            poll_interval=config.poll_interval,
        )
        self.suspects = SuspectLane(
            store=Store(self._lines["claim"]),
            slots=self.slots,
            kinds=registry.kinds,
            capped=cap is not None,
            worker=lambda: self.vitals.worker,
            may_claim=lambda: self.claimer.may_claim,
            written=self.acker.written,
            give_back=self.release,
            on_doubt=self.doubts.add,
            on_end=self.claimer.look,
            metrics=self.metrics,
        )
        self.limited = LimitedClaimer(
            store=Store(self._lines["limited"]),
            slots=self.slots,
            kinds=registry.kinds,
            worker=lambda: self.vitals.worker,
            may_claim=lambda: self.claimer.may_claim,
            give_back=self.release,
            on_doubt=self.doubts.add,
            metrics=self.metrics,
            poll_interval=config.poll_interval,
        )
        self.canceller = Canceller(
            store=self.store, executor=self.executor, slots=self.slots, put=self.put, vitals=self.vitals
        )
        self.maintenance = Maintenance(
            store=self.store,
            vitals=self.vitals,
            metrics=self.metrics,
            worker=lambda: self.vitals.worker,
            ttl=config.lease_ttl,
            history_days=config.history_days,
            on_ready=self.claimer.wake,
            on_suspects=self.suspects.look,
            on_limited=self.limited.look,
            patience=lambda: self.scheduler.patience if schedules else None,
            on_schedules=lambda: self.scheduler.due(),
        )
        self.scheduler = Scheduler(
            store=self.store, vitals=self.vitals, metrics=self.metrics, on_done=self.maintenance.due
        )
        self.census = Census(
            store=Store(self._lines["count"]), vitals=self.vitals, metrics=self.metrics, queues=config.queues
        )
        self.standing = Standing(
            store=self.store,
            vitals=self.vitals,
            claimer=self.claimer,
            executor=self.executor,
            slots=self.slots,
            release=self.release,
            outcomes=self.acker.outcomes,
            ttl=config.lease_ttl,
            kinds=registry.kinds,
        )
        self.lifeline = Lifeline(
            build=self._build_lifeline,
            close=self._close_lifeline,
            vitals=self.vitals,
            notifier=self.notifier,
            hang_timeout=inf if guest else config.hang_timeout,
            on_failure=lambda error: self._tell(on_failure, error),
        )

    def put(self, attempt: Attempt, chain: Chain | None = None) -> None:
        """Hand an outcome to whoever writes it."""
        if chain is None:
            self.acker.put(attempt)
        else:
            self.chainer.put(attempt, chain)

    def _note_written(self, attempts: Sequence[Attempt]) -> None:
        """Set the alarm for what comes back later, whose delay counts from the ack: an alarm before it would find nothing."""
        for attempt in attempts:
            if attempt.delay is not None:
                self.maintenance.due(attempt.delay)
        self.limited.written(attempts)

    def _wake(self) -> None:
        self.claimer.wake()
        self.limited.room()

    def _note_room(self, queue: str) -> None:
        if self.limited.full:
            self.limited.room()
        self.claimer.room(queue)

    def release(self, jobs: Iterable[Job[Any]]) -> None:
        """Give jobs back: those that have not started, or whose handlers do not end."""
        for job in jobs:
            self.put(released(job))

    async def close(self) -> None:
        """Hang up all connections and end threads and processes."""
        for slots in self.slots.values():
            slots.cancel()
        await self.lifeline.stop()
        await self._pool.close()
        await asyncio.gather(*(line.close() for line in self._lines.values()))
        await asyncio.to_thread(self._processes.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- the lifeline's

    async def _build_lifeline(self) -> list[Callable[[], Awaitable[None]]]:
        config = self._config
        self._side_lines = {"beat": self._line("beat", part=BEAT_PART, least=0.0), "ask": self._line("ask")}
        self._side_lines["listen"] = self._line("listen", url=config.listen_database_url)
        heartbeat = Heartbeat(
            store=Store(self._side_lines["beat"]),
            vitals=self.vitals,
            metrics=self.metrics,
            ttl=config.lease_ttl,
            on_suspects=lambda: self._tell(self.suspects.look),
            on_signals=lambda: self._tell(self.canceller.look),
            on_taken_for_dead=lambda worker: self._tell(self.standing.taken_for_dead, worker),
        )
        listener = Listener(
            line=self._side_lines["listen"],
            vitals=self.vitals,
            metrics=self.metrics,
            queues=frozenset(config.queues),
            ttl=config.lease_ttl,
            on_wake=lambda: self._tell(self.claimer.wake),
            on_control=lambda word: self._tell(self._obey, word),
        )
        self.endpoint = Endpoint(
            host=config.http_host,
            port=config.http_port,
            admin_token=config.admin_token,
            store=Store(self._side_lines["ask"]),
            vitals=self.vitals,
            metrics=self.metrics,
            fold=self._fold,
            ttl=config.lease_ttl,
            hang_timeout=config.hang_timeout,
        )
        if not self._guest:
            await self.endpoint.open()
        return [heartbeat.run, listener.run, self.endpoint.run]

    async def _close_lifeline(self) -> None:
        await asyncio.gather(*(line.close() for line in self._side_lines.values()))

    def _tell(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make a call on the main loop, from the lifeline's thread."""
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the main loop is closed: nobody is left to tell
            log.debug("a word from the lifeline came too late")

    async def _fold(self) -> None:
        """Have what the main loop noted counted before somebody reads it; on the lifeline, which waits for no main loop that hangs."""
        counted: Future[None] = Future()

        def count() -> None:
            self.metrics.fold()
            if counted.set_running_or_notify_cancel():
                counted.set_result(None)

        self._tell(count)
        with suppress(TimeoutError):
            async with asyncio.timeout(FOLD_PATIENCE):
                await asyncio.wrap_future(counted)

    def _obey(self, word: str) -> None:
        """Do what the control channel says."""
        match word:
            case "due":
                self.maintenance.due()
            case "limits":
                self.limited.look()
            case "settle":
                self.maintenance.settle()
            case "suspects":
                self.suspects.look()
            case "cancel":
                self.canceller.look()

    def _line(
        self,
        name: str,
        *,
        url: str | None = None,
        raw_json: bool = False,
        part: float = CALL_PART,
        least: float = LEAST_PATIENCE,
    ) -> Line:
        patience = max(self._config.lease_ttl * part, least)
        return Line(name, url or self._url, raw_json=raw_json, on_reconnect=self._note_reconnect, patience=patience)

    def _note_reconnect(self, line: str) -> None:
        self.metrics.reconnects.labels(line).inc()
        if line == "beat":
            self._tell(self.standing.doubt_database)
