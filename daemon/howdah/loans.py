"""Connections that are lent to an attempt: they come back with it at the latest, or handlers that keep theirs would starve all others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.errors import HowdahError
from howdah.job import job_fields

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from howdah.job import Job

log = logging.getLogger("howdah.loans")

# Nobody waits for these, and the loop alone would not keep them.
_returns: set[asyncio.Task[None]] = set()


class Loans:
    """What one attempt has borrowed. On the loop only."""

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._open: set[_Loan] = set()
        self._over = False

    def lend(
        self, lent: AbstractAsyncContextManager[asyncpg.Connection]
    ) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend for the length of a `with`, or of the attempt, whichever is over first."""
        return _Loan(lent, self)

    def end(self) -> None:
        """Take back what was not given back. Without waiting: the connection may be in the middle of something."""
        self._over = True
        if self._open:
            log.warning("a handler kept its connection, taking it back", extra=job_fields(self._job))
        for loan in self._open:
            task = asyncio.get_running_loop().create_task(loan.take_back(), name="taking back a connection")
            _returns.add(task)
            task.add_done_callback(_returns.discard)
        self._open = set()

    def open(self, loan: _Loan) -> bool:
        """Note that a loan has begun; False: the attempt has ended meanwhile."""
        if not self._over:
            self._open.add(loan)
        return not self._over

    def close(self, loan: _Loan) -> bool:
        """Note that a loan is over; False: it was taken back."""
        was_open = loan in self._open
        self._open.discard(loan)
        return was_open


class _Loan:
    """One `async with job.connection()`."""

    def __init__(self, lent: AbstractAsyncContextManager[asyncpg.Connection], loans: Loans) -> None:
        self._lent = lent
        self._loans = loans

    async def __aenter__(self) -> asyncpg.Connection:
        connection = await self._lent.__aenter__()
        if not self._loans.open(self):
            await self.take_back()
            raise HowdahError("the attempt that asked for this connection has ended")
        return connection

    async def __aexit__(self, *failure: Any) -> bool | None:  # noqa: PYI036  # handed on as they come
        return await self._lent.__aexit__(*failure) if self._loans.close(self) else None

    async def take_back(self) -> None:
        try:
            await self._lent.__aexit__(None, None, None)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # In use by a task that the handler left behind, say: it was closed then, and another takes its place.
            log.debug("a connection that was taken back is closed", extra={"error": str(error)})
