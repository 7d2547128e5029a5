"""Handlers whose writes, jobs and completion are one commit."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.chaining import chain, refusal
from howdah.database import CALL_TIMEOUT
from howdah.errors import DatabaseUnavailableError, LeaseLostError
from howdah.outcomes import returned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from howdah.job import Attempt, Job
    from howdah.registry import Handler

ENQUEUE = "select howdah.enqueue_many($1)"
COMPLETE = "select howdah.complete($1, $2, $3, $4, $5)"
#: For the answer to a rollback, in seconds; without one the connection is cut, which undoes as much.
UNDO_TIMEOUT = 2.0


class Transactions:
    """Calls handlers with a connection of the pool, in a transaction."""

    def __init__(
        self,
        *,
        connection: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]],
        keep_history: bool,
        on_written: Callable[[Sequence[Attempt]], None] = lambda _: None,
        patience: float = CALL_TIMEOUT,
    ) -> None:
        """`patience`: how many seconds completion and commit get at least, whatever is left of the job's timeout."""
        self._connection = connection
        self._keep_history = keep_history
        self._on_written = on_written
        self._patience = patience

    async def call(
        self, job: Job[Any], handler: Handler, *, seal: Callable[[Job[Any]], None], committed: Callable[[Attempt], None]
    ) -> Attempt | None:
        """Let the handler's writes and the completion commit together; any other outcome undoes the writes, and is given.

        `seal` is called when nothing may cancel the job any more, for half a commit is known to nobody.
        """
        async with self._connection() as connection:
            transaction = connection.transaction()
            try:
                await transaction.start()
            except BaseException:
                connection.terminate()  # cut off in its middle, it would come back to the pool as one that has a transaction
                raise
            limit: asyncio.Timeout | None = None
            try:
                outcome = returned(job, handler, await handler.function(job, connection))
                if outcome.outcome != "completed":
                    await transaction.rollback()
                    return outcome
                if job.chained:
                    # Not sealed yet: a unique key may be held by somebody's open transaction for longer than the timeout.
                    await _enqueue(connection, job.chained)
                seal(job)
                # Nobody cancels it from here on, so it needs an end of its own: the answer may never come.
                left = job.deadline - monotonic() if job.deadline < inf else 0.0
                async with asyncio.timeout(max(left, self._patience)) as limit:
                    if not self._keep_history:
                        await connection.execute("select set_config('howdah.keep_history', 'off', true)")
                    await connection.fetchval(
                        COMPLETE, job.id, job.lease, outcome.result, monotonic() - job.started, job.progress
                    )
                    # A commit whose answer is lost fails the attempt; its ack then finds this lease in the history, or does not.
                    await transaction.commit()
            except BaseException as error:
                await _undo(connection, transaction)
                if isinstance(error, asyncpg.PostgresError) and error.sqlstate == "JB008":
                    raise LeaseLostError(job.id, job.lease) from None
                if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                    raise DatabaseUnavailableError("the completion was not answered for") from None
                raise
        committed(outcome)
        self._on_written([outcome])
        return None


async def _undo(connection: asyncpg.Connection, transaction: Any) -> None:
    """Roll back, if there is something to roll back and somebody who answers; else cut the connection."""
    if connection.is_closed() or not connection.is_in_transaction():
        return  # a commit that was refused has undone everything
    try:
        async with asyncio.timeout(UNDO_TIMEOUT):
            await transaction.rollback()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def _enqueue(connection: asyncpg.Connection, links: list[bytes]) -> None:
    try:
        await connection.execute(ENQUEUE, chain(links))
    except asyncpg.PostgresError as error:
        raise refusal(error) from None
