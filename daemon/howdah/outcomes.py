"""What came of an attempt: the outcome of what its handler returned or raised, or of what cut it short."""

from __future__ import annotations

import logging
from datetime import timedelta
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.backoff import backoff
from howdah.job import Attempt, Cancel, Discard, Job, Snooze, job_fields
from howdah.jsontext import describe_error, encode, encode_error
from howdah.masking import hider

if TYPE_CHECKING:
    from howdah.registry import Handler

log = logging.getLogger("howdah.outcomes")


def returned(job: Job[Any], handler: Handler, value: Any) -> Attempt:
    """Give the outcome of what a handler returned."""
    if value is None:
        return Attempt(job.id, job.lease, "completed", None, None, None, job.started, monotonic())
    if isinstance(value, Snooze):
        return Attempt(job.id, job.lease, "snoozed", None, None, _seconds(value.delay), job.started, monotonic())
    if isinstance(value, Discard):
        hide = hider(handler.secret, job.raw_payload)
        return _dead(job, describe_error("Discard", str(value.reason), hide=hide))
    if isinstance(value, Cancel):
        return cancelled(job, "handler", value.reason)
    return Attempt(job.id, job.lease, "completed", encode(value), None, None, job.started, monotonic())


def failed(job: Job[Any], handler: Handler, error: BaseException) -> Attempt:
    """Give the outcome of what a handler raised: another attempt, or the end."""
    hide = hider(handler.secret, job.raw_payload)
    # By its type: what an exception says of its class, when it is asked, is the author's code again.
    hopeless = issubclass(type(error), (*handler.discard_for, asyncpg.ForeignKeyViolationError)) and not issubclass(
        type(error), handler.retry_for
    )
    if hopeless and issubclass(type(error), asyncpg.ForeignKeyViolationError):
        missing = getattr(error, "detail", None) or str(error)
        return _dead(job, describe_error("ForeignKeyViolation", missing, hide=hide))
    if hopeless or job.attempt >= job.max_attempts:
        return _dead(job, encode_error(error, hide=hide))
    return Attempt(
        job.id,
        job.lease,
        "retried",
        None,
        encode_error(error, hide=hide),
        _backoff(job, handler),
        job.started,
        monotonic(),
    )


def refused(job: Job[Any], error: BaseException) -> Attempt:
    """Give the outcome of a payload that does not fit; the engine's own stack has nothing to say about that."""
    return _dead(job, encode_error(error.with_traceback(None)))


def cancelled(job: Job[Any], by: str | None, reason: str | None) -> Attempt:
    """Give the outcome of a job that nobody wants any more."""
    return Attempt(
        job.id, job.lease, "cancelled", None, encode({"by": by, "reason": reason}), None, job.started, monotonic()
    )


def released(job: Job[Any]) -> Attempt:
    """Give a job back unharmed; but one that may run at most once, and has started, is dead: it may not start again."""
    if job.max_attempts == 1 and job.told_start:
        return _dead(job, describe_error("Interrupted", "its worker left while it ran, and it may run at most once"))
    return Attempt(job.id, job.lease, "released", None, None)


def _dead(job: Job[Any], error: bytes) -> Attempt:
    return Attempt(job.id, job.lease, "dead", None, error, None, job.started, monotonic())


def _seconds(delay: float | timedelta) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if not isfinite(seconds):
        raise ValueError(f"a delay of {seconds} seconds never ends")
    return max(seconds, 0.0)


def _backoff(job: Job[Any], handler: Handler) -> float:
    """Give the handler's own delay; the usual one where that fails, for the attempt's error is what counts."""
    try:
        return _seconds(handler.backoff(job.attempt))
    except BaseException as error:  # sys.exit(), too
        log.warning("no delay from backoff", extra={**job_fields(job), "error": type(error).__name__})
        return backoff(job.attempt)
