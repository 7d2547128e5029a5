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

from howdah.error_reporters import ErrorReporters
from howdah.errors import HowdahError
from howdah.executor import Executor
from howdah.jsontext import encode
from howdah.lifespans import Resources
from howdah.metrics import Metrics
from howdah.processes import Processes
from howdah.registry import Registry
from howdah.services import WorkerServices
from howdah.store import Store, job_of
from howdah.testing.choice import handler_of
from howdah.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    import asyncpg

    from howdah.chaining import Chain
    from howdah.job import Attempt, Job
    from howdah.registry import Handler

# As text: the test's connection may write jsonb in whichever way it likes.
_ENQUEUE = "select howdah.enqueue_many($1::text::jsonb)"


@dataclasses.dataclass(frozen=True, slots=True)
class JobOutcome:
    """What came of the attempt.

    `outcome` is `completed`, `snoozed`, `retried`, `dead` or `cancelled`; `result` is what would be stored; `error` is what the
    handler raised, or why its payload was refused; `reason` is that of a Discard or a Cancel; `delay` is the seconds until
    the next attempt; `reports` are the handler's, oldest first; `enqueued` what it gave to `job.enqueue`, `steps` the results of its
    steps by name, and `logs` the lines of `job.log`.
    """

    outcome: str
    result: Any
    error: BaseException | None
    reason: str | None
    delay: timedelta | None
    reports: list[Any]
    enqueued: list[dict[str, Any]]
    steps: dict[str, Any]
    logs: list[logging.LogRecord]

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
    steps: Mapping[str, Any] | None = None,
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
        commit: keep the work of a handler with `transaction=True` that completes, and the jobs that it enqueues, in the connection's own transaction if one is
            open.
        resources: the job's `resources`, in place of what lifespans give.
        steps: results of steps that earlier attempts have done.
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
    bench = _Bench(declared, connection, resources or {}, steps or {})
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
                ended, chain = await bench.run(job)
                if chain is not None:
                    await connection.execute(_ENQUEUE, chain.jobs.decode())
                end.commit = commit and ended.outcome == "completed"
        else:
            ended, chain = await bench.run(job)
    return bench.tell(ended, chain, logs)


class _Bench:
    """A worker's executor with nothing around it."""

    def __init__(
        self,
        handler: Handler,
        connection: asyncpg.Connection | None,
        given: Mapping[str, Any],
        steps: Mapping[str, Any],
    ) -> None:
        self._handler = handler
        self._connection = connection
        self._ended: list[tuple[Attempt, Chain | None]] = []
        self._steps = _Steps(steps)
        self._errors = _Errors()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="handler")
        self._processes = Processes([handler.function.__module__], log_style="console", log_level="warning")
        resources = Resources()
        resources.add("run_job", given)
        registry = Registry()
        registry.add(_untied(handler, connection))
        self._services = _Reporting(steps=self._steps, connection=self._lend)
        self._executor = Executor(
            registry=registry,
            metrics=Metrics(),
            put=lambda attempt, chain: self._ended.append((attempt, chain)),
            write_start=lambda _job: _yes(),
            services=self._services,
            transactions=Transactions(connection=self._lend, keep_history=True),
            threads=self._threads,
            processes=self._processes,
            resources=resources,
            errors=self._errors,
        )

    async def run(self, job: Job[Any]) -> tuple[Attempt, Chain | None]:
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

    def tell(self, ended: Attempt, chain: Chain | None, logs: list[logging.LogRecord]) -> JobOutcome:
        facts: dict[str, Any] = orjson.loads(bytes(ended.error)) if ended.error is not None else {}
        reason = facts.get("reason") if ended.outcome == "cancelled" else None
        if facts.get("type") == "Discard" and self._errors.error is None:
            reason = facts["message"]
        return JobOutcome(
            outcome=ended.outcome,
            result=orjson.loads(bytes(ended.result)) if ended.result is not None else None,
            error=self._errors.error if ended.outcome in {"retried", "dead"} else None,
            reason=reason,
            delay=timedelta(seconds=ended.delay) if ended.delay is not None else None,
            reports=self._services.reports,
            enqueued=orjson.loads(chain.jobs) if chain is not None else [],
            steps=self._steps.results(),
            logs=logs,
        )

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[asyncpg.Connection]:
        if self._connection is None:
            raise HowdahError(f"{self._handler.kind} asks for job.connection(): run_job needs connection=")
        yield self._connection


def _untied(handler: Handler, connection: asyncpg.Connection | None) -> Handler:
    """Give a handler with its connection given to it: a worker's own transaction ends with the job's row, and there is none."""
    if not handler.transaction:
        return handler
    function = handler.function

    async def call(job: Job[Any]) -> Any:
        return await function(job, connection)

    return dataclasses.replace(handler, function=call, transaction=False)


class _Errors(ErrorReporters):
    """Keeps the error that reporters would be told of."""

    def __init__(self) -> None:
        super().__init__([])
        self.error: BaseException | None = None

    def tell(self, _job: Job[Any], error: BaseException) -> None:
        self.error = error


class _Steps(Store):
    """Keeps the results of steps without a database."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self._kept = {name: bytes(encode(value)) for name, value in kept.items()}

    async def steps(self, _job: int, _lease: int) -> dict[str, bytes] | None:
        return dict(self._kept)

    async def keep_step(self, _job: int, _lease: int, name: str, result: bytes) -> bytes | None:
        return self._kept.setdefault(name, bytes(result))

    def results(self) -> dict[str, Any]:
        return {name: orjson.loads(result) for name, result in self._kept.items()}


class _Reporting(WorkerServices):
    """Keeps every report, not only the newest."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.reports: list[Any] = []

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
