"""What is known of a job, as the view job_status tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from howdah.anyjson import read

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import asyncpg

_JSON = frozenset({"payload", "progress", "result", "errors", "headers"})


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One row of `howdah.job_status`: a live job, or an ended one."""

    id: int
    queue: str
    kind: str
    #: waiting, scheduled, retrying, ready or running; then completed, dead or cancelled.
    state: str
    subject: str | None
    priority: int
    payload: dict[str, Any]
    attempt: int
    max_attempts: int
    crashes: int
    created_at: datetime
    #: Not before then; None for a job that may run now, that has ended, or that waits for something else than a time.
    due_at: datetime | None
    claimed_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    duration: timedelta | None
    progress: Any
    #: What its handler returned.
    result: Any
    #: The last error's message; `errors` has the last ten.
    error: str | None
    errors: list[dict[str, Any]] | None
    worker: int | None
    cancelled_by: str | None
    cancel_reason: str | None
    retried_from: int | None
    unique_key: str | None
    headers: dict[str, Any] | None

    @property
    def ended(self) -> bool:
        """True once nothing about the job will change any more."""
        return self.finished_at is not None

    @classmethod
    def of(cls, row: asyncpg.Record) -> JobStatus:
        """Read a row of the query look_up."""
        return cls(
            **{name: read(value) if name in _JSON and value is not None else value for name, value in row.items()}
        )


class Tally(NamedTuple):
    """How many live jobs of a queue and kind are in a state, and for how long the oldest has been ready."""

    queue: str
    kind: str
    state: str
    jobs: int
    oldest: timedelta
