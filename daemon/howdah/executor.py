"""One attempt at a job: prepare, call, and say what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from datetime import timedelta
from math import inf, isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from howdah.backoff import backoff
from howdah.errors import HandlerTimeoutError, LeaseLostError, PayloadError
from howdah.job import Attempt, Cancel, Discard, Job, Snooze, current_job, job_fields
from howdah.jsontext import describe_error, encode, encode_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from concurrent.futures import Future, ThreadPoolExecutor
    from contextlib import AbstractAsyncContextManager

    from howdah.metrics import Metrics
    from howdah.processes import Processes
    from howdah.registry import Handler, Registry

log = logging.getLogger("howdah.executor")

#: How often the timeouts are looked at, in seconds: a timer for every job would cost more than most jobs do.
WATCH_INTERVAL = 0.1

COMPLETE = "select howdah.complete($1, $2, $3, $4, $5)"


class Executor:
    """Runs attempts. `put` takes each one's outcome; it must not wait."""

    def __init__(
        self,
        *,
        registry: Registry,
        metrics: Metrics,
        put: Callable[[Attempt], None],
        write_start: Callable[[Job[Any]], Awaitable[bool]],
        connection: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]],
        threads: ThreadPoolExecutor,
        processes: Processes,
        resources: dict[str, Any],
        keep_history: bool,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._put = put
        self._write_start = write_start
        self._connection = connection
        self._threads = threads
        self._processes = processes
        self._resources = resources
        self._keep_history = keep_history
        #: The jobs whose handlers run now, by id; only they may be cancelled. Touched by the main loop alone.
        self.running: dict[int, Job[Any]] = {}
        self._some_run = asyncio.Event()
        #: The calls in threads that have not returned, also those that nobody waits for any more: no thread can be cancelled.
        self.in_threads: set[Future[Any]] = set()
        self._reported: dict[int, Job[Any]] = {}

    async def execute(self, job: Job[Any]) -> None:
        """Run one attempt to its outcome. Never raises for what a handler does; a cancelled attempt is a release."""
        handler = self._registry.get(job.kind)
        job.started = monotonic()
        refusal = self._prepare(job, handler)
        if refusal is not None or handler is None:
            self._finish(job, refusal or released(job))
            return
        if job.start_first and not await self._write_start(job):
            self._note_lost(job)
            return
        job.started = started = monotonic()
        # A process keeps time itself, from when it begins: waiting for a free one is not the job's fault.
        job.deadline = started + (job.timeout or handler.timeout) if handler.runs_in != "process" else inf
        job.task = asyncio.current_task()
        self.running[job.id] = job
        self._some_run.set()
        self._metrics.wait.labels(job.queue).observe(job.waited + started - job.in_hand_since)
        try:
            outcome = await self._call(job, handler)
        except LeaseLostError:
            self._note_lost(job)
            return
        finally:
            self.running.pop(job.id, None)
            # A cancellation that the handler swallowed must not be left to the next job in this slot.
            while job.task is not None and job.task.cancelling():
                job.task.uncancel()
        if outcome is not None and not job.abandoned:
            self._finish(job, outcome)

    def cancel(self, job: Job[Any], by: str | None, reason: str | None) -> None:
        """Ask a running job to stop. A handler in a thread has to look at `job.cancelled`; the others are interrupted.

        A handler that ends first keeps its true outcome.
        """
        if job.cancelled:
            return
        job.cancelled, job.cancel_by, job.cancel_reason = True, by, reason
        handler = self._registry.get(job.kind)
        if job.task is not None and handler is not None and handler.runs_in != "thread":
            job.task.cancel()

    def interrupt(self) -> list[int]:
        """Cancel everything that runs, once; the attempts are released. Gives the ids of those that had not been told."""
        told = [job for job in self.running.values() if not job.interrupted and job.task is not None]
        for job in told:
            job.interrupted = True
            if job.task is not None:
                job.task.cancel()
        return [job.id for job in told]

    def abandon(self) -> list[Job[Any]]:
        """Give up on what still runs: whatever it says from now on is not written."""
        for job in self.running.values():
            job.abandoned = True
        return list(self.running.values())

    def report(self, job: Job[Any], progress: Any) -> None:
        """Keep a job's newest progress until somebody takes it."""
        job.progress = encode(progress)
        self._reported[job.id] = job

    def report_again(self, job: Job[Any]) -> None:
        """Keep progress that could not be written, unless newer has come."""
        self._reported.setdefault(job.id, job)

    def take_reports(self) -> list[Job[Any]]:
        """Give the jobs that have progress to be written, and forget them."""
        reported, self._reported = list(self._reported.values()), {}
        return reported

    def connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of the handlers' pool."""
        return self._connection()

    async def watch(self) -> None:
        """Cancel what runs past its timeout, for as long as the service lives."""
        while True:
            if not self.running:
                self._some_run.clear()
                await self._some_run.wait()
            await asyncio.sleep(WATCH_INTERVAL)
            now = monotonic()
            for job in self.running.values():
                if job.deadline < now and not job.timed_out and job.task is not None:
                    job.timed_out = True
                    job.task.cancel()

    def _prepare(self, job: Job[Any], handler: Handler | None) -> Attempt | None:
        """Make the job ready for its handler, or give the outcome that it has without one."""
        if handler is None:
            return None
        if job.expires_in is not None and job.expires_in < job.started - job.in_hand_since:
            return self._cancelled(job, "howdah", "it expired before it was started")
        try:
            job.payload = handler.validate(job.raw_payload)
        except PayloadError as error:
            return self._dead(job, encode_error(error.with_traceback(None)))
        except Exception as error:
            return self._failed(job, handler, error)  # a validator of the author's own broke
        job.headers = orjson.loads(job.raw_headers) if job.raw_headers is not None else {}
        job.resources = self._resources
        job.services = self
        return None

    async def _call(self, job: Job[Any], handler: Handler) -> Attempt | None:
        """Call the handler; None means that the completion is committed already."""
        context = contextvars.copy_context()
        context.run(current_job.set, job)
        try:
            if handler.transaction:
                outcome: Attempt | None = await _InContext(self._in_transaction(job, handler), context)
                return outcome
            if handler.runs_in == "async":
                value = await _InContext(handler.function(job), context)
            elif handler.runs_in == "thread":
                future = self._threads.submit(context.run, _call_in_thread, handler.function, job)
                self.in_threads.add(future)
                future.add_done_callback(self.in_threads.discard)
                value = await asyncio.wrap_future(future)
            else:
                value = await self._processes.call(job, handler)
            return self._returned(job, value)
        except asyncio.CancelledError as error:
            return self._interrupted(job, handler, error)
        except (LeaseLostError, GeneratorExit):
            raise
        except BaseException as error:
            # SystemExit, too: a handler that calls sys.exit() must not end the daemon.
            return self._failed(job, handler, error)

    async def _in_transaction(self, job: Job[Any], handler: Handler) -> Attempt | None:
        """Let the handler's writes and the completion commit together; any other outcome undoes the writes."""
        async with self._connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                outcome = self._returned(job, await handler.function(job, connection))
                if outcome.outcome != "completed":
                    await transaction.rollback()
                    return outcome
                # From here on nothing may cancel: half a commit is known to nobody.
                self.running.pop(job.id, None)
                if not self._keep_history:
                    await connection.execute("select set_config('howdah.keep_history', 'off', true)")
                await connection.fetchval(
                    COMPLETE, job.id, job.lease, outcome.result, monotonic() - job.started, job.progress
                )
            except BaseException as error:
                if not connection.is_closed():
                    await transaction.rollback()
                if isinstance(error, asyncpg.PostgresError) and error.sqlstate == "JB008":
                    raise LeaseLostError(job.id, job.lease) from None
                raise
            # A commit whose answer is lost fails the attempt; its ack then finds this lease in the history, or does not.
            await transaction.commit()
        self._count(job, outcome)
        return None

    def _returned(self, job: Job[Any], value: Any) -> Attempt:
        if value is None:
            return Attempt(job.id, job.lease, "completed", None, None, None, job.started, monotonic())
        if isinstance(value, Snooze):
            return Attempt(job.id, job.lease, "snoozed", None, None, _seconds(value.delay), job.started, monotonic())
        if isinstance(value, Discard):
            return self._dead(job, describe_error("Discard", str(value.reason)))
        if isinstance(value, Cancel):
            return self._cancelled(job, "handler", value.reason)
        return Attempt(job.id, job.lease, "completed", encode(value), None, None, job.started, monotonic())

    def _failed(self, job: Job[Any], handler: Handler, error: BaseException) -> Attempt:
        """Decide between another attempt and the end."""
        log.debug("attempt failed", extra={**job_fields(job), "error": type(error).__name__})
        hopeless = isinstance(error, (*handler.discard_for, asyncpg.ForeignKeyViolationError)) and not isinstance(
            error, handler.retry_for
        )
        if isinstance(error, asyncpg.ForeignKeyViolationError) and hopeless:
            return self._dead(job, describe_error("ForeignKeyViolation", error.detail or str(error)))
        if hopeless or job.attempt >= job.max_attempts:
            return self._dead(job, encode_error(error))
        return Attempt(
            job.id,
            job.lease,
            "retried",
            None,
            encode_error(error),
            _backoff(job, handler),
            job.started,
            monotonic(),
        )

    def _interrupted(self, job: Job[Any], handler: Handler, error: asyncio.CancelledError) -> Attempt:
        """Say what a cancellation meant: the timeout, a request, or the service going away (the attempt is not counted).

        One that nobody of us asked for is the handler's own failure: released, it would run in a circle for ever.
        """
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
        if job.timed_out:
            return self._failed(job, handler, HandlerTimeoutError(job.kind, job.timeout or handler.timeout))
        if job.cancelled:
            return self._cancelled(job, job.cancel_by, job.cancel_reason)
        return released(job) if job.interrupted else self._failed(job, handler, error)

    def _dead(self, job: Job[Any], error: bytes) -> Attempt:
        return Attempt(job.id, job.lease, "dead", None, error, None, job.started, monotonic())

    def _cancelled(self, job: Job[Any], by: str | None, reason: str | None) -> Attempt:
        return Attempt(
            job.id,
            job.lease,
            "cancelled",
            None,
            encode({"by": by, "reason": reason}),
            None,
            job.started,
            monotonic(),
        )

    def _note_lost(self, job: Job[Any]) -> None:
        self._metrics.lost_leases.inc()
        log.warning("lost lease", extra=job_fields(job))

    def _finish(self, job: Job[Any], attempt: Attempt) -> None:
        # The last progress goes with the ack: the job may end before its next report is due.
        self._put(attempt if job.progress is None else attempt._replace(progress=job.progress))
        self._count(job, attempt)

    def _count(self, job: Job[Any], attempt: Attempt) -> None:
        self._metrics.finished.labels(job.queue, job.kind, attempt.outcome).inc()
        if attempt.started is not None and attempt.ended is not None:
            self._metrics.run.labels(job.kind).observe(attempt.ended - attempt.started)


def released(job: Job[Any]) -> Attempt:
    """Give a job back unharmed; but one that may run at most once, and has started, is dead: it may not start again."""
    if job.max_attempts == 1 and job.told_start:
        error = describe_error("Interrupted", "its worker left while it ran, and it may run at most once")
        return Attempt(job.id, job.lease, "dead", None, error, None, job.started, monotonic())
    return Attempt(job.id, job.lease, "released", None, None)


def _call_in_thread(function: Callable[[Job[Any]], Any], job: Job[Any]) -> Any:
    try:
        return function(job)
    except StopIteration as error:
        # No future takes this one: its waiter would wait for ever.
        raise RuntimeError("the handler raised StopIteration") from error


def _seconds(delay: float | timedelta) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if not isfinite(seconds):
        raise ValueError(f"a delay of {seconds} seconds never ends")
    return max(seconds, 0.0)


def _backoff(job: Job[Any], handler: Handler) -> float:
    """Give the handler's own delay; the usual one where that fails, for the attempt's error is what counts."""
    try:
        return _seconds(handler.backoff(job.attempt))
    except Exception as error:
        log.warning("no delay from backoff", extra={**job_fields(job), "error": type(error).__name__})
        return backoff(job.attempt)


class _InContext:
    """Awaits a coroutine with every one of its steps run in a context of its own.

    Many jobs run one after the other in one task; what a handler leaves in its context variables must not reach the next.
    """

    __slots__ = ("_context", "_coroutine")

    def __init__(self, coroutine: Any, context: contextvars.Context) -> None:
        self._coroutine = coroutine
        self._context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        step, argument = coroutine.send, None
        while True:
            try:
                awaited = run(step, argument)
            except StopIteration as end:
                return end.value
            try:
                argument = yield awaited
                step = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                argument, step = error, coroutine.throw
