"""Run one handler once, as a worker would, without a worker: no queue, no row, and no database unless it wants a connection."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from howdah.errors import HowdahError
from howdah.executor import Executor
from howdah.jsontext import encode
from howdah.metrics import Metrics
from howdah.processes import Processes
from howdah.registry import Registry
from howdah.store import job_of
from howdah.testing.choice import handler_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    import asyncpg

    from howdah.job import Attempt, Job
    from howdah.registry import Handler


@dataclasses.dataclass(frozen=True, slots=True)
class JobOutcome:
    """What came of the attempt.

    `outcome` is `completed`, `snoozed`, `retried`, `dead` or `cancelled`; `result` is what would be stored; `error` is what the
    handler raised, or why its payload was refused; `reason` is that of a Discard or a Cancel; `delay` is the seconds until
    the next attempt; `reports` are the handler's, oldest first, and `logs` the lines of `job.log`.
    """

    outcome: str
    result: Any
    error: BaseException | None
    reason: str | None
    delay: timedelta | None
    reports: list[Any]
    logs: list[logging.LogRecord]
    facts: dict[str, Any] | None = dataclasses.field(repr=False)

    @property
    def completed(self) -> bool:
        """Tell whether it went well."""
        return self.outcome == "completed"

    @property
    def snoozed(self) -> timedelta | None:
        """The delay that the handler asked for."""
        return self.delay if self.outcome == "snoozed" else None

    @property
    def discarded(self) -> str | None:
        """Why the handler gave the job up as hopeless."""
        return self.reason if self.outcome == "dead" else None

    def check(self) -> JobOutcome:
        """Raise the handler's own error if there is one; else give the outcome itself."""
        __tracebackhide__ = True
        if self.error is not None:
            raise self.error
        return self


async def run_job(
    handler: str | Callable[..., Any],
    payload: Any = None,
    *,
    connection: asyncpg.Connection | None = None,
    commit: bool = False,
    resources: Mapping[str, Any] | None = None,
    attempt: int = 1,
    max_attempts: int | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # the job's
    queue: str = "default",
    priority: int = 0,
    subject: str | None = None,
    headers: Mapping[str, Any] | None = None,
    id: int = 1,  # noqa: A002  # what it is called everywhere
) -> JobOutcome:
    """Run one attempt of a handler and tell what came of it. The payload is validated, and times out, as in a worker.

    Args:
        handler: the decorated function, or its kind.
        payload: a dict or a model: what enqueue would be given.
        connection: what a handler with `transaction=True` writes on, or what `job.connection()` lends. Its work is rolled back
            at the end.
        commit: keep the work of a handler with `transaction=True` that completes, in the connection's own transaction if one is
            open.
        resources: the job's `resources`.
        attempt: which attempt this is, from 1.
        max_attempts: of the job; the handler's own if it is not given.
        timeout: of the job, in seconds; the handler's own if it is not given.
        queue: the job's queue.
        priority: the job's priority.
        subject: the job's subject.
        headers: the job's headers.
        id: the job's id.

    """
    declared = handler_of(handler)
    if declared.transaction and connection is None:
        raise HowdahError(f"{declared.kind} has transaction=True: run_job needs connection=")
    bench = _Bench(declared, connection, dict(resources or {}))
    row = (
        id, queue, declared.kind, bytes(encode({} if payload is None else payload)), priority, attempt,
        max_attempts or max(declared.max_attempts, attempt), timeout, 0.0, None, subject,
        bytes(encode(headers)) if headers is not None else None, datetime.now(UTC), *[None] * 8,
    )  # fmt: skip
    job = job_of(row, lease=1)
    job.start_first = False  # there is no row to write it to
    job.in_hand_since = monotonic()
    with _logged(f"howdah.job.{declared.kind}") as logs:
        if declared.transaction and connection is not None:
            async with _transaction(connection) as end:
                ended = await bench.run(job)
                end.commit = commit and ended.outcome == "completed"
        else:
            ended = await bench.run(job)
    return bench.tell(ended, logs)


class _Bench:
    """A worker's executor with nothing around it."""

    def __init__(self, handler: Handler, connection: asyncpg.Connection | None, resources: dict[str, Any]) -> None:
        self._handler = handler
        self._connection = connection
        self._ended: list[Attempt] = []
        self._error: BaseException | None = None
        self._reports: list[Any] = []
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="handler")
        self._processes = Processes([handler.function.__module__], log_style="console", log_level="warning")
        registry = Registry()
        registry.add(self._watched(handler))
        self._executor = _Reporting(
            registry=registry,
            metrics=Metrics(),
            put=self._ended.append,
            write_start=lambda _job: _yes(),
            connection=self._lend,
            threads=self._threads,
            processes=self._processes,
            resources=resources,
            keep_history=True,
        )
        self._executor.reports = self._reports

    async def run(self, job: Job[Any]) -> Attempt:
        watch = asyncio.create_task(self._executor.watch())
        # In a task of its own: the timeout cancels it, and a test's own task must not be what is cancelled.
        try:
            await asyncio.create_task(self._executor.execute(job))
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await asyncio.to_thread(self._processes.close)
            self._threads.shutdown(wait=False, cancel_futures=True)
        return self._ended[0]

    def tell(self, ended: Attempt, logs: list[logging.LogRecord]) -> JobOutcome:
        facts: dict[str, Any] | None = orjson.loads(bytes(ended.error)) if ended.error is not None else None
        reason, error = None, self._error
        if facts is not None and ended.outcome == "cancelled":
            reason, error = facts["reason"], None
        elif facts is not None and facts["type"] == "Discard":
            reason = facts["message"]
        elif facts is not None and error is None:
            # Refused before the handler was called, timed out, or raised in another process.
            error = HowdahError(f"{facts['type']}: {facts['message']}")
        return JobOutcome(
            outcome=ended.outcome,
            result=orjson.loads(bytes(ended.result)) if ended.result is not None else None,
            error=error if facts is not None else None,
            reason=reason,
            delay=timedelta(seconds=ended.delay) if ended.delay is not None else None,
            reports=self._reports,
            logs=logs,
            facts=facts,
        )

    def _watched(self, handler: Handler) -> Handler:
        """Give the handler with its errors kept, and its connection given to it: a worker's transaction needs the job's row."""
        if handler.runs_in == "process":
            return handler
        function, extra = handler.function, (self._connection,) if handler.transaction else ()

        async def call(job: Job[Any]) -> Any:
            try:
                return await function(job, *extra)
            except Exception as error:
                self._error = error
                raise

        def call_in_thread(job: Job[Any]) -> Any:
            try:
                return function(job)
            except Exception as error:
                self._error = error
                raise

        watched = call if handler.runs_in == "async" else call_in_thread
        return dataclasses.replace(handler, function=watched, transaction=False)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[asyncpg.Connection]:
        if self._connection is None:
            raise HowdahError(f"{self._handler.kind} asks for job.connection(): run_job needs connection=")
        yield self._connection


class _Reporting(Executor):
    """Keeps every report, not only the newest."""

    reports: list[Any]

    def report(self, job: Job[Any], progress: Any) -> None:
        self.reports.append(progress)
        super().report(job, progress)


class _End:
    commit = False


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection) -> AsyncIterator[_End]:
    transaction, end = connection.transaction(), _End()
    await transaction.start()
    try:
        yield end
    finally:
        if not connection.is_closed():
            await (transaction.commit() if end.commit else transaction.rollback())


class _Keeper(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextmanager
def _logged(name: str) -> Iterator[list[logging.LogRecord]]:
    """Keep what a logger is told, whatever its level is."""
    records: list[logging.LogRecord] = []
    keeper = _Keeper(records)
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.setLevel(level)
        logger.removeHandler(keeper)


async def _yes() -> bool:
    return True
