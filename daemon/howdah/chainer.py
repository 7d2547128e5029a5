"""The writer of acks that bring jobs along: one by one, and on a connection of their own.

A job with a unique key has to wait while somebody's open transaction holds that key; plain acks must not wait with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from howdah.chaining import Chain
    from howdah.job import Attempt
    from howdah.metrics import Metrics
    from howdah.store import Store

    Link = tuple[Attempt, Chain]

log = logging.getLogger("howdah.chainer")

#: After a statement that found no database, in seconds.
RETRY_PAUSE = 0.05
#: Before another try at rows or keys that somebody holds, in seconds.
BUSY_PAUSE = 0.1


class Chainer:
    """Takes outcomes with the jobs that come with them, and writes each until the database has answered for it."""

    def __init__(
        self, *, store: Store, metrics: Metrics, keep_history: bool, on_written: Callable[[Sequence[Attempt]], None]
    ) -> None:
        self._store = store
        self._on_written = on_written
        self._metrics = metrics
        self._keep = keep_history
        self._waiting: deque[Link] = deque()
        self._busy: deque[Link] = deque()
        self._writing: Link | None = None
        self._some = asyncio.Event()

    @property
    def backlog(self) -> int:
        """How many outcomes are not written yet."""
        return len(self._waiting) + len(self._busy) + (self._writing is not None)

    def holds(self, job_id: int) -> bool:
        """Tell whether what was put about a job is not written yet."""
        links = (*self._waiting, *self._busy, *([self._writing] if self._writing else []))
        return any(attempt.id == job_id for attempt, _ in links)

    def outcomes(self) -> Iterator[Attempt]:
        """Give the outcomes that are not written yet."""
        for attempt, _ in (*self._waiting, *self._busy, *([self._writing] if self._writing else [])):
            yield attempt

    def put(self, attempt: Attempt, chain: Chain) -> None:
        """Take an outcome; never waits."""
        self._waiting.append((attempt, chain))
        self._some.set()

    async def run(self) -> None:
        """Write for as long as the service lives. New ones first: what is busy may be so for minutes."""
        busy_at = 0.0
        while True:
            if self._busy and monotonic() >= busy_at:
                self._waiting.extend(self._busy)
                self._busy.clear()
            if not self._waiting:
                self._some.clear()
                try:
                    async with asyncio.timeout(max(busy_at - monotonic(), 0) if self._busy else None):
                        await self._some.wait()
                except TimeoutError:
                    continue
            self._writing = self._waiting.popleft()
            is_busy = await self._write(*self._writing)
            if is_busy:
                self._busy.append(self._writing)
                busy_at = monotonic() + BUSY_PAUSE
            self._writing = None

    async def _write(self, attempt: Attempt, chain: Chain) -> bool:
        """Write one, however long the database is away; tells whether somebody holds what it needs."""
        sent = False
        while True:
            try:
                written = await self._store.ack_with(attempt, chain.jobs, keep=self._keep)
                if not written and await self._is_busy(attempt, sent=sent):
                    return True
            except DatabaseUnavailableError as error:
                log.debug("ack will be repeated", extra={"job": attempt.id, "error": str(error)})
                sent = True
                await asyncio.sleep(RETRY_PAUSE)
            except (asyncpg.LockNotAvailableError, asyncpg.TransactionRollbackError):
                return True
            except asyncpg.PostgresError as error:
                if not (isinstance(error, asyncpg.CheckViolationError) and "no partition" in str(error)):
                    chain.refused(error)
                    return False
                log.warning("history has no partition for today, making it")
                if not await self._store.make_partitions(1):
                    return True
            else:
                chain.written()
                self._on_written([attempt])
                return False

    async def _is_busy(self, attempt: Attempt, *, sent: bool) -> bool:
        fate = (await self._store.ack_fate([attempt], [sent], keep=self._keep))[attempt.id]
        if fate == "lost":
            self._metrics.lost_leases.inc()
            log.warning("lost lease", extra={"job": attempt.id, "outcome": attempt.outcome})
        return fate == "busy"
