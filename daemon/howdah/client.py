"""Howdah from Python: enqueue, ask, wait and command, over a pool of the client's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from howdah import enqueuing
from howdah.config import load_config
from howdah.database import STATEMENTS, Line
from howdah.enqueuing import create_batch, enqueue, enqueue_many, enqueue_payloads
from howdah.errors import ConfigError, DatabaseUnavailableError
from howdah.jobstatus import JobStatus, Tally
from howdah.newjob import Enqueued, JobOptions, NewJob, PayloadOptions, arguments_json, refusals
from howdah.pool import HandlerPool
from howdah.queries import SQL
from howdah.waiting import Waits, poll, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from datetime import datetime, timedelta
    from typing import Unpack

__all__ = [
    "Client",
    "Enqueued",
    "JobStatus",
    "NewJob",
    "Tally",
    "create_batch",
    "enqueue",
    "enqueue_many",
    "enqueue_payloads",
]


class Client:
    """Lends connections as they are needed: `async with Client() as client`.

    `url` defaults to HOWDAH_DATABASE_URL, then DATABASE_URL. Where that leads through a pooler, HOWDAH_LISTEN_DATABASE_URL
    (`listen_url`) is the direct address, and no statement is kept prepared; `pooler=True` says so without one. Methods raise
    RefusedError for what the database refuses, and DatabaseUnavailableError when nobody knows whether the call took effect.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool_size: int | None = None,
        listen_url: str | None = None,
        pooler: bool | None = None,
    ) -> None:
        config = load_config(database_url=url, listen_database_url=listen_url, pool_size=pool_size)
        if config.database_url is None:
            raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
        direct = config.listen_database_url or config.database_url
        pooler = direct != config.database_url if pooler is None else pooler
        statements = 0 if pooler else STATEMENTS
        self._pool = HandlerPool(
            config.database_url, config.pool_size, name="howdah client", statement_cache_size=statements
        )
        # Not of the pool: whoever waits while others hold all of its connections must not wait for ever.
        self._line = Line("wait", config.database_url, statement_cache_size=statements)
        self._waits = Waits(line=self._line, ear=Line("listen", direct))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. Whoever still waits for a job is told with an error."""
        await self._waits.close()
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection with a transaction open: what is written and enqueued on it commits together, or not at all.

        jsonb travels as Python's dicts and lists.
        """
        async with self._pool.lend() as connection, connection.transaction():
            yield connection

    # -- work comes in

    async def enqueue(self, kind: str, payload: Any = None, **options: Unpack[JobOptions]) -> Enqueued:
        """Enqueue one job, committed when this returns."""
        async with self._lend() as connection:
            return await enqueuing.enqueue(connection, kind, payload, **options)

    async def enqueue_many(self, jobs: Iterable[NewJob | Mapping[str, Any]]) -> list[Enqueued]:
        """Enqueue jobs of any sort, all of them or none, and give their ids in order."""
        async with self._lend() as connection:
            return await enqueuing.enqueue_many(connection, jobs)

    async def enqueue_payloads(
        self, kind: str, payloads: Iterable[Any], **options: Unpack[PayloadOptions]
    ) -> list[int]:
        """Enqueue a job of one kind for each payload, all of them or none, and give their ids in order."""
        async with self._lend() as connection:
            return await enqueuing.enqueue_payloads(connection, kind, payloads, **options)

    async def enqueue_coalesced(
        self,
        kind: str,
        payload: Any = None,
        *,
        key: str = "",
        delay: timedelta | float = 0,
        queue: str | None = None,
        priority: int | None = None,
        subject: str | None = None,
    ) -> None:
        """Tell of an event: all events of a key that commit within `delay` of the first become one job with the last payload."""
        arguments = {"kind": kind, "payload": payload, "delay": delay, "queue": queue, "priority": priority}
        await self._fetch("enqueue_coalesced", arguments_json({**arguments, "subject": subject}, trace=False), key)

    # -- commands

    async def cancel(self, job_id: int, by: str | None = None, reason: str | None = None) -> str:
        """Cancel a job and give its state after that: a queued one ends at once, a running one is told within a second."""
        return str(await self._value("cancel", job_id, by, reason))

    async def cancel_subject(self, subject: str, by: str | None = None, reason: str | None = None) -> int:
        """Cancel every live job of a subject and give their number."""
        return int(await self._value("cancel_subject", subject, by, reason))

    async def retry(self, job_id: int) -> int:
        """Make a new job of an ended one, with all its attempts before it, and give the new id."""
        return int(await self._value("retry", job_id))

    async def reschedule(self, job_id: int, run_at: datetime) -> None:
        """Move a queued job to another time."""
        await self._fetch("reschedule", job_id, run_at)

    async def pause(self, queue: str, by: str | None = None) -> None:
        """Let no more jobs of a queue be claimed; what runs goes on."""
        await self._fetch("pause", queue, by)

    async def resume(self, queue: str) -> None:
        """Let a queue be claimed again."""
        await self._fetch("resume", queue)

    # -- questions

    async def job(self, job_id: int) -> JobStatus | None:
        """Give all that is known of a job; None if there is no such job, or its history has been dropped."""
        rows = await self._fetch("look_up", [job_id])
        return JobStatus.of(rows[0]) if rows else None

    async def explain(self, job_id: int) -> str:
        """Say in a sentence why a job is not running, and what would change that."""
        return str(await self._value("explain", job_id))

    async def stats(self) -> list[Tally]:
        """Count the live jobs by queue, kind and state."""
        return [Tally(*row) for row in await self._fetch("tally")]

    async def wait(self, job_id: int, timeout: float | None = None) -> JobStatus:  # noqa: ASYNC109  # a method of its own kind
        """Wait until a job has ended, whatever happens to workers and servers meanwhile. Raises TimeoutError after `timeout` s."""
        status: JobStatus = await within(timeout, self._waits.wait(job_id), f"job {job_id} has not ended")
        return status

    async def wait_idle(
        self,
        *,
        subject: str | None = None,
        kind: str | None = None,
        queue: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        """Wait until nothing of this subject, kind and queue (None: any) is queued or runs. Raises TimeoutError.

        What is scheduled for later counts as queued, and so does an event that has not become a job yet.
        """
        wanted = {"subject": subject, "kind": kind, "queue": queue}
        what = " and ".join(f"{name} {value}" for name, value in wanted.items() if value is not None) or "the database"
        await within(timeout, poll(self._line, SQL["is_idle"], *wanted.values()), f"{what} did not become idle")

    # -- below

    async def _value(self, name: str, *arguments: Any) -> Any:
        return (await self._fetch(name, *arguments))[0][0]

    async def _fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self._lend() as connection:
            with refusals():
                return await connection.fetch(SQL[name], *arguments)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            async with self._pool.lend() as connection:
                yield connection
        except (
            OSError,
            asyncpg.InterfaceError,
            asyncpg.PostgresConnectionError,
            asyncpg.CannotConnectNowError,
        ) as error:
            raise DatabaseUnavailableError(f"client: {str(error) or type(error).__name__}") from error
