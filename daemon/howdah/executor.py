"""One attempt at a job: prepare, call, and say what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from howdah.anyjson import read
from howdah.chaining import Chain, chain, refusal
from howdah.contexts import BLOCKED, InContext
from howdah.errors import HandlerTimeoutError, LeaseLostError, PayloadError, RefusedError
from howdah.job import Attempt, Job, current_job, job_fields
from howdah.outcomes import cancelled, failed, refused, released, returned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    import asyncpg

    from howdah.error_reporters import ErrorReporters
    from howdah.job import Services
    from howdah.metrics import Metrics
    from howdah.processes import Processes
    from howdah.registry import Handler, Registry
    from howdah.tracing import Tracing
    from howdah.transactions import Transactions

log = logging.getLogger("howdah.executor")

#: How often the timeouts are looked at, in seconds: a timer for every job would cost more than most jobs do.
WATCH_INTERVAL = 0.1
#: A step that holds up the main loop for longer is said as a warning, in seconds.
BLOCKED_LONG = 1.0


class Executor:
    """Runs attempts. `put` takes each one's outcome; it must not wait."""

    def __init__(
        self,
        *,
        registry: Registry,
        metrics: Metrics,
        put: Callable[[Attempt, Chain | None], None],
        write_start: Callable[[Job[Any]], Awaitable[bool]],
        services: Services,
        transactions: Transactions,
        threads: ThreadPoolExecutor,
        processes: Processes,
        resources: Mapping[str, Any],
        errors: ErrorReporters,
        tracing: Tracing | None = None,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        # Looked up once: these are used for every job.
        self._waits, self._runs = metrics.waits, metrics.runs
        #: Whether the life of each job is logged.
        self.verbose = log.isEnabledFor(logging.DEBUG)
        self._put = put
        self._write_start = write_start
        self._services = services
        self._transactions = transactions
        self._threads = threads
        self._processes = processes
        self._resources = resources
        self._errors = errors
        self._tracing = tracing
        #: The jobs whose handlers run now, by id; only they may be cancelled. Touched by the main loop alone.
        self.running: dict[int, Job[Any]] = {}
        self._some_run = asyncio.Event()
        #: The calls in threads that have not returned, also those that nobody waits for any more: no thread can be cancelled.
        self.in_threads: set[Future[Any]] = set()

    def begin(self, job: Job[Any]) -> Coroutine[Any, Any, None] | None:
        """Begin one attempt, in the task that `job.task` is; gives what that task has to await, or None: it has ended already.

        A short handler ends with its first step, and then no coroutine of ours was made for it. Never raises for what a handler
        does; a cancelled attempt is a release.
        """
        handler = self._registry.get(job.kind)
        job.started = monotonic()
        refusal = self._prepare(job, handler)
        if refusal is not None or handler is None:
            self._finish(job, refusal or released(job))
            return None
        if job.start_first or handler.transaction or handler.runs_in != "async" or self._tracing is not None:
            return self._execute(job, handler)
        context = self._enter(job, handler)
        outcome: Attempt | None = None
        coroutine = None
        try:
            coroutine = handler.function(job)
            awaited = context.run(coroutine.send, None)
        except StopIteration as end:
            # Only a coroutine ends so; a function that is called and raises it has failed.
            outcome = (
                self._returned(job, handler, end.value) if coroutine is not None else self._failed(job, handler, end)
            )
        except LeaseLostError:
            self._note_lost(job)
        except asyncio.CancelledError as error:
            outcome = self._interrupted(job, handler, error)
        except BaseException as error:
            outcome = self._failed(job, handler, error)
        else:
            call = self._call(job, handler, InContext(coroutine, context, self._note_blocked, awaited=awaited))
            return self._follow(job, handler, call)
        finally:
            if (seconds := monotonic() - job.started) > BLOCKED:
                self._note_blocked(context, seconds)
        self._leave(job, handler, outcome)
        return None

    async def execute(self, job: Job[Any]) -> None:
        """Run one attempt to its outcome, in the task that calls this."""
        job.task = asyncio.current_task()
        waits = self.begin(job)
        if waits is not None:
            await waits

    async def _execute(self, job: Job[Any], handler: Handler) -> None:
        """Run an attempt of which more than the handler has to be awaited."""
        if job.start_first and not await self._write_start(job):
            self._note_lost(job)
            return
        context = self._enter(job, handler)
        call = self._call(job, handler, self._calling(job, handler, context))
        await self._follow(job, handler, call if self._tracing is None else self._tracing.follow(job, context, call))

    def _enter(self, job: Job[Any], handler: Handler) -> contextvars.Context:
        """Note that a handler is about to be called, and give the context that it runs in."""
        job.started = started = monotonic()
        # A process keeps time itself, from when it begins: waiting for a free one is not the job's fault.
        job.deadline = started + (job.timeout or handler.timeout) if handler.runs_in != "process" else inf
        self.running[job.id] = job
        self._waits[job.queue].append(job.waited + started - job.in_hand_since)
        if self.verbose:
            log.debug("job started", extra=job_fields(job))
        context = contextvars.copy_context()
        context.run(current_job.set, job)
        return context

    async def _follow(self, job: Job[Any], handler: Handler, call: Awaitable[Attempt | None]) -> None:
        """Await a call, and put its outcome."""
        self._some_run.set()
        outcome = None
        try:
            outcome = await call
        except LeaseLostError:
            self._note_lost(job)
        finally:
            self._leave(job, handler, outcome)

    def _leave(self, job: Job[Any], handler: Handler, outcome: Attempt | None) -> None:
        """Note that a handler's call is over, and hand over its outcome; None: there is none, or it is committed already."""
        # An attempt that was let go may end after the next one at the same job has begun here.
        if self.running.get(job.id) is job:
            del self.running[job.id]
        if job.loans is not None:
            job.loans.end()
        # A cancellation that the handler swallowed must not be left to the next job in this slot.
        while job.task is not None and job.task.cancelling():
            job.task.uncancel()
        if outcome is not None and not job.abandoned:
            if job.chained:
                self._finish_with(job, handler, outcome, job.chained)
            else:
                self._finish(job, outcome)

    def cancel(self, job: Job[Any], by: str | None, reason: str | None) -> None:
        """Ask a running job to stop. A handler in a thread has to look at `job.cancelled`; the others are interrupted.

        A handler that ends first keeps its true outcome.
        """
        if job.cancelled:
            return
        job.cancelled, job.cancel_by, job.cancel_reason = True, by, reason
        if job.task is not None and not self._is_in_thread(job):
            job.task.cancel()

    def interrupt(self, *, spare_threads: bool = False) -> list[int]:
        """Cancel everything that runs, once; the attempts are released. Gives the ids of those that had not been told.

        A thread cannot be cancelled: `spare_threads` leaves it to look at `job.stopping`, and what it says still counts.
        """
        told = [job for job in self.running.values() if not job.interrupted and job.task is not None]
        for job in told:
            job.interrupted = True
            if job.task is not None and not (spare_threads and self._is_in_thread(job)):
                job.task.cancel()
        return [job.id for job in told]

    def abandon(self) -> list[Job[Any]]:
        """Give up on what still runs: whatever it says from now on is not written."""
        for job in self.running.values():
            job.abandoned = True
        return list(self.running.values())

    def report_again(self, job: Job[Any]) -> None:
        """Have progress written again that could not be."""
        job.reported = None

    def take_reports(self) -> list[Job[Any]]:
        """Give the running jobs whose progress was not given before."""
        self._processes.collect_progress()
        fresh = [job for job in self.running.values() if job.progress is not job.reported]
        for job in fresh:
            job.reported = job.progress
        return fresh

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
            return cancelled(job, "howdah", "it expired before it was started")
        job.headers = {}
        job.resources = self._resources
        job.services = self._services
        try:
            if job.raw_headers is not None:
                job.headers = _headers(job)
            job.payload = handler.validate(job.raw_payload)
        except BaseException as error:
            job.payload = read(job.raw_payload)  # for whoever is told of the error
            self._errors.tell(job, error)
            # Anything else is a validator of the author's own that broke.
            return refused(job, error) if isinstance(error, PayloadError) else failed(job, handler, error)
        return None

    async def _call(self, job: Job[Any], handler: Handler, calling: Awaitable[Any]) -> Attempt | None:
        """Await a handler's call and say what came of it; None: the completion is committed already."""
        try:
            value = await calling
            return value if handler.transaction else self._returned(job, handler, value)
        except asyncio.CancelledError as error:
            return self._interrupted(job, handler, error)
        except LeaseLostError:
            raise
        except BaseException as error:
            if type(error) is GeneratorExit and not _is_current(job.task):
                raise  # whoever closes this coroutine throws it, and not the handler
            # SystemExit, too: a handler that calls sys.exit() must not end the daemon.
            return self._failed(job, handler, error)

    async def _calling(self, job: Job[Any], handler: Handler, context: contextvars.Context) -> Any:
        """Call a handler where it wants to run, and give what it returns; of one in a transaction, what is not committed with it."""
        if handler.transaction:
            call = self._transactions.call(job, handler, seal=self._seal, committed=lambda done: self._count(job, done))
            return await InContext(call, context, self._note_blocked)
        if handler.runs_in == "async":
            return await InContext(handler.function(job), context, self._note_blocked)
        if handler.runs_in == "thread":
            future = self._threads.submit(context.run, _call_in_thread, handler.function, job)
            self.in_threads.add(future)
            future.add_done_callback(self.in_threads.discard)
            return _come_of(*await asyncio.wrap_future(future))
        return await self._processes.call(job, handler)

    def _returned(self, job: Job[Any], handler: Handler, value: Any) -> Attempt:
        try:
            return returned(job, handler, value)
        except BaseException as error:
            return self._failed(job, handler, error)  # what cannot be JSON

    def _seal(self, job: Job[Any]) -> None:
        """Let nobody cancel a job any more: that is done to what runs."""
        self.running.pop(job.id, None)

    def _is_in_thread(self, job: Job[Any]) -> bool:
        handler = self._registry.get(job.kind)
        return handler is not None and handler.runs_in == "thread"

    def _failed(self, job: Job[Any], handler: Handler, error: BaseException) -> Attempt:
        job.chained = None
        self._errors.tell(job, error)
        return failed(job, handler, error)

    def _interrupted(self, job: Job[Any], handler: Handler, error: asyncio.CancelledError) -> Attempt:
        """Say what a cancellation meant: the timeout, a request, or the service going away (the attempt is not counted).

        One that nobody of us asked for is the handler's own failure: released, it would run in a circle for ever.
        """
        job.chained = None
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
        if job.timed_out:
            return self._failed(job, handler, HandlerTimeoutError(job.kind, job.timeout or handler.timeout))
        if job.cancelled:
            return cancelled(job, job.cancel_by, job.cancel_reason)
        if not job.interrupted:
            return self._failed(job, handler, error)
        # That it had been started is told: it keeps the tokens that it took.
        return released(job)._replace(started=job.started, ended=monotonic())

    def _note_lost(self, job: Job[Any]) -> None:
        self._metrics.lost_leases.inc()
        log.warning("lost lease", extra=job_fields(job))

    def _note_blocked(self, context: contextvars.Context, seconds: float) -> None:
        job = context.get(current_job)
        if job is not None:
            self._metrics.loop_blocked.labels(job.kind).inc(seconds)
            fields = {**job_fields(job), "seconds": round(seconds, 3)}
            level = logging.WARNING if seconds > BLOCKED_LONG else logging.DEBUG
            log.log(level, "a handler held up the main loop", extra=fields)

    def _finish(self, job: Job[Any], attempt: Attempt) -> None:
        self._put(attempt if job.progress is None else _with_progress(job, attempt), None)
        self._count(job, attempt)

    def _finish_with(self, job: Job[Any], handler: Handler, attempt: Attempt, links: Sequence[bytes]) -> None:
        """Hand over an outcome that brings jobs along. Jobs that the database refuses make it a failed attempt."""

        def refused_by(error: asyncpg.PostgresError) -> None:
            self._finish(job, self._failed(job, handler, refusal(error)))

        try:
            jobs = chain(links)
        except RefusedError as error:
            self._finish(job, self._failed(job, handler, error))
        else:
            self._put(_with_progress(job, attempt), Chain(jobs, lambda: self._count(job, attempt), refused_by))

    def _count(self, job: Job[Any], attempt: Attempt) -> None:
        started, ended = attempt.started, attempt.ended
        seconds = None
        if started is not None and ended is not None:
            seconds = ended - started
            self._runs[job.queue, job.kind, attempt.outcome].append(seconds)
        else:
            self._metrics.unstarted.append((job.queue, job.kind, attempt.outcome))
        if self.verbose:
            log.debug("job ended", extra={**job_fields(job), **_ending(attempt, seconds)})


def _with_progress(job: Job[Any], attempt: Attempt) -> Attempt:
    """Let the last progress go with the ack: the job may end before its next report is due."""
    return attempt if job.progress is None else attempt._replace(progress=job.progress)


def _ending(attempt: Attempt, seconds: float | None) -> dict[str, Any]:
    """Give what the log says of an attempt's end."""
    fields: dict[str, Any] = {"outcome": attempt.outcome}
    if seconds is not None:
        fields["seconds"] = round(seconds, 6)
    if attempt.error is not None and attempt.outcome in {"retried", "dead"}:
        fields["error"] = orjson.loads(attempt.error).get("type")
    return fields


def _is_current(task: asyncio.Task[None] | None) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs any more
        return False


def _headers(job: Job[Any]) -> Mapping[str, Any]:
    try:
        headers: Mapping[str, Any] = orjson.loads(job.raw_headers or b"{}")
    except orjson.JSONDecodeError as error:
        raise PayloadError(job.kind, f"headers: {error}") from None
    return headers


def _call_in_thread(function: Callable[[Job[Any]], Any], job: Job[Any]) -> tuple[Any, BaseException | None]:
    """Give what a handler returned, and what it raised: a future refuses some exceptions, and who waits for it would wait for ever."""
    try:
        return function(job), None
    except BaseException as error:
        return None, error


def _come_of(value: Any, raised: BaseException | None) -> Any:
    if raised is not None:
        raise raised
    return value
