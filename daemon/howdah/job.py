"""A job as its handler sees it, and the outcomes that a handler may return."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, Unpack

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta

    import asyncpg

    from howdah.newjob import JobOptions

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Snooze:
    """Return this to be called again after `delay` (seconds, or a timedelta); the attempt is not counted."""

    delay: float | timedelta


@dataclass(frozen=True, slots=True)
class Discard:
    """Return this to end the job as dead at once, however many attempts are left: it is hopeless, and `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Return this to end the job as cancelled: nobody wants it any more, and `reason` says why."""

    reason: str


class Attempt(NamedTuple):
    """What came of one attempt. `error` is JSON; for cancelled it is {"by", "reason"}.

    `started` and `ended` are of `time.monotonic()`, None for an attempt that never started.
    """

    id: int
    lease: int
    outcome: str
    result: bytes | None
    error: bytes | None
    delay: float | None = None
    started: float | None = None
    ended: float | None = None
    progress: bytes | None = None


class Steps(Protocol):
    """The steps of one attempt; only their owner looks inside."""


class Loans(Protocol):
    """The connections that one attempt has borrowed."""

    def end(self) -> None:
        """Take back what was not given back; called when the attempt has ended."""


class Services(Protocol):
    """What a running job may ask of its worker."""

    def report(self, job: Job[Any], progress: Any) -> None:
        """Keep the newest progress, to be written within a second."""

    def step(self, job: Job[Any], name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do a step, or give what it gave before: awaitable on the loop, the result itself in a thread."""

    def enqueue(self, job: Job[Any], kind: str, payload: Any, options: Mapping[str, Any]) -> None:
        """Keep a job to be enqueued with the ack of this one."""

    def connection(self, job: Job[Any]) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of the handlers' pool."""


class Job(Generic[P]):
    """One attempt at a job, handed to its handler.

    `payload` is what the handler's annotation asks for: `Job[Model]` gives a validated Model, `Job` a dict.
    """

    __slots__ = (
        "abandoned",
        "attempt",
        "batch",
        "cancel_by",
        "cancel_reason",
        "cancelled",
        "chained",
        "created_at",
        "deadline",
        "expires_in",
        "headers",
        "id",
        "in_hand_since",
        "interrupted",
        "kind",
        "lease",
        "loans",
        "max_attempts",
        "payload",
        "priority",
        "progress",
        "queue",
        "raw_headers",
        "raw_payload",
        "reported",
        "resources",
        "services",
        "start_first",
        "started",
        "steps",
        "subject",
        "task",
        "timed_out",
        "timeout",
        "told_start",
        "waited",
    )

    id: int
    kind: str
    queue: str
    payload: P
    attempt: int
    max_attempts: int
    priority: int
    subject: str | None
    #: The batch that this job belongs to: pass it on to enqueue, and the new job joins it.
    batch: int | None
    headers: Mapping[str, Any]
    created_at: datetime
    #: True from the moment somebody asked for this job to be cancelled.
    cancelled: bool
    #: When the timeout strikes, on the clock of `time.monotonic()`.
    deadline: float
    #: What the lifespans gave; not in process handlers.
    resources: Mapping[str, Any]

    # The engine's own: the lease is the fence, `task` is the slot that runs it.
    lease: int
    timeout: float | None
    waited: float
    expires_in: float | None
    raw_payload: bytes
    raw_headers: bytes | None
    in_hand_since: float
    started: float
    told_start: bool
    # At most once, or a suspect: the start is written and committed before the handler is called.
    start_first: bool
    timed_out: bool
    interrupted: bool
    cancel_by: str | None
    cancel_reason: str | None
    # Released while its handler still ran: whatever the handler says later is nobody's.
    abandoned: bool
    # JSON, the newest; and what was given to be written last.
    progress: bytes | None
    reported: bytes | None
    # The jobs that it asked for, each as JSON.
    chained: list[bytes] | None
    steps: Steps | None
    loans: Loans | None
    services: Services
    task: asyncio.Task[None] | None

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} attempt {self.attempt}/{self.max_attempts}>"

    @property
    def slot(self) -> datetime | None:
        """The slot of the schedule that made this job, in UTC; None: somebody enqueued it."""
        told = self.headers.get("schedule")
        return datetime.fromisoformat(told["slot"]) if isinstance(told, dict) and "slot" in told else None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the job's id, kind, queue, attempt and subject."""
        return _JobLog(logging.getLogger(f"howdah.job.{self.kind}"), job_fields(self))

    @property
    def stopping(self) -> bool:
        """True from the moment the attempt should end: cancelled, out of time, or its worker is leaving.

        An async handler is interrupted then, and one in a process is killed; one in a thread has to look at this between its
        steps. On a drain it is asked a few seconds before the end: what it says within them counts, and `Snooze(0)` gives
        the job back for another worker, its attempt not counted.
        """
        return self.cancelled or self.timed_out or self.interrupted

    def report(self, progress: Any) -> Awaitable[None]:
        """Publish progress, any JSON, in `job_status.progress`. Async handlers may await it, plain ones just call it.

        At most one write a second; the newest one wins, and the last is never lost. A write that fails never hurts the job.
        """
        self.services.report(self, progress)
        return _DONE

    def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function once in the life of this job, and give its result: `await job.step("charge", charge, card)`.

        The result is kept before this returns, whatever becomes of the attempt, so a later attempt gets it without a call.
        What you get is always what its JSON says. A second step of one name gives what the first gave. Plain handlers, in
        threads, call it without `await`. Not in process handlers.

        Args:
            name: 1 to 200 characters, one name for one step.
            function: a coroutine function, or a plain one.
            arguments: what it is called with.

        Raises LeaseLostError when the job is not this worker's any more: let it pass; StepError, which names the step, when the result
        is not JSON or larger than 1 MiB.

        """
        return self.services.step(self, name, function, arguments)

    def enqueue(self, kind: str, payload: Any = None, **options: Unpack[JobOptions]) -> Awaitable[None]:
        """Have another job enqueued in the same commit in which this one completes. Plain handlers just call it.

        It is enqueued if the handler returns, also Snooze, Discard or Cancel, and dropped if the attempt fails, is given back or
        has lost its lease. Raises RefusedError for what is wrong by itself; a job that the database refuses fails the attempt with it.

        Args:
            kind: what kind of job.
            payload: a JSON object, or a model.
            options: the other arguments of howdah.enqueue by name: queue, priority, delay (seconds or timedelta), unique_key, …

        """
        self.services.enqueue(self, kind, payload, options)
        return _DONE

    def connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of the handlers' pool for the length of an `async with`, at most of this attempt."""
        return self.services.connection(self)


class _Done:
    """Awaited, it is done already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


_DONE = _Done()


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds a job's fields to those of the line; the library's adapter would put them in their place."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def job_fields(job: Job[Any]) -> dict[str, Any]:
    """Give what every log line about a job carries."""
    fields = {"job": job.id, "kind": job.kind, "queue": job.queue, "attempt": job.attempt}
    if job.subject is not None:
        fields["subject"] = job.subject
    return fields


#: The job that runs in this context, so that plain `logging` inside a handler carries its id, too.
current_job: ContextVar[Job[Any] | None] = ContextVar("howdah_job", default=None)
