"""The writer of acks: everything that ended while the last batch was on its way is the next batch."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import DatabaseUnavailableError
from howdah.jsontext import describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from howdah.chainer import Chainer
    from howdah.job import Attempt
    from howdah.metrics import Metrics
    from howdah.store import Store

log = logging.getLogger("howdah.acker")

BATCH = 1000
#: The most bytes of results and progress in one statement, beyond those of its first outcome: the server takes a gigabyte, and hangs up on more.
BATCH_BYTES = 8 << 20
#: With so many acks waiting, the claimer stops: what runs must not outgrow what can be written down.
HIGH_WATER = 5000
#: After a statement that found no database, in seconds.
RETRY_PAUSE = 0.05
#: Between tries at rows that somebody holds, in seconds, growing from the first to the second.
BUSY_PAUSE = (0.005, 0.25)
#: Between looks at whether the chainer is done, in seconds.
SETTLED_INTERVAL = 0.02


class Acker:
    """Takes outcomes at any speed and writes them in batches, each until the database has answered for it."""

    def __init__(
        self,
        *,
        store: Store,
        chainer: Chainer,
        metrics: Metrics,
        keep_history: bool,
        on_relief: Callable[[], None],
        on_written: Callable[[Sequence[Attempt]], None],
    ) -> None:
        self._store = store
        self._chainer = chainer
        self._metrics = metrics
        self._keep = keep_history
        self._on_relief = on_relief
        self._on_written = on_written
        self._waiting: list[Attempt] = []
        self._busy: list[Attempt] = []
        self._sent: set[tuple[int, int]] = set()
        # Whether somebody was told that it is full, and has not been told that it is not.
        self._crossed = False
        self._writing: list[Attempt] = []
        self._some = asyncio.Event()
        self._round = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.acks_waiting.set_function(lambda: self.backlog)

    @property
    def backlog(self) -> int:
        """How many outcomes are not written yet."""
        return len(self._waiting) + len(self._busy) + len(self._writing) + self._chainer.backlog

    def ask_full(self) -> bool:
        """Tell whether the claimer should wait; if so, it is told as soon as it need not."""
        full = self.backlog >= HIGH_WATER
        self._crossed = self._crossed or full
        return full

    def put(self, attempt: Attempt) -> None:
        """Take an outcome; never waits."""
        if not self._waiting:
            self._some.set()
            self._idle.clear()
        self._waiting.append(attempt)

    def outcomes(self) -> Iterator[Attempt]:
        """Give the outcomes that are not written yet."""
        yield from self._waiting
        yield from self._writing
        yield from self._busy
        yield from self._chainer.outcomes()

    async def settled(self) -> None:
        """Wait until everything that was put is written."""
        await self._idle.wait()
        while self.backlog:  # noqa: ASYNC110  # only for what brings jobs along
            await asyncio.sleep(SETTLED_INTERVAL)

    async def written(self, job_id: int) -> None:
        """Wait until what was put about one job is written."""
        while any(attempt.id == job_id for attempt in (*self._waiting, *self._writing, *self._busy)):
            self._round.clear()
            await self._round.wait()
        if self._chainer.holds(job_id):
            while self._chainer.holds(job_id):  # noqa: ASYNC110  # rare: a suspect that enqueues
                await asyncio.sleep(SETTLED_INTERVAL)
            # Refused, it has come back as another outcome.
            await self.written(job_id)

    async def run(self) -> None:
        """Write batches for as long as the service lives."""
        pause = BUSY_PAUSE[0]
        while True:
            if not self._waiting and not self._busy:
                self._some.clear()
                self._idle.set()
                await self._some.wait()
            elif not self._waiting:
                # Only rows that others hold: give them a moment, but let new outcomes through at once.
                self._some.clear()
                try:
                    async with asyncio.timeout(pause):
                        await self._some.wait()
                except TimeoutError:
                    pause = min(pause * 2, BUSY_PAUSE[1])
            fresh, held = self._take()
            self._writing = batch = fresh + held
            still_busy = await self._write_all(fresh, held)
            self._writing = []
            self._busy.extend(still_busy)
            self._round.set()
            if len(still_busy) < len(batch):
                pause = BUSY_PAUSE[0]
            if self._crossed and self.backlog < HIGH_WATER:
                self._crossed = False
                self._on_relief()

    def _take(self) -> tuple[list[Attempt], list[Attempt]]:
        # New ones first: rows that somebody holds for a minute must not hold up the others.
        most = _fitting(self._waiting)
        fresh, self._waiting = self._waiting[:most], self._waiting[most:]
        held: list[Attempt] = []
        if not self._waiting:
            room = min(BATCH - len(fresh), _fitting(self._busy))
            held, self._busy = self._busy[:room], self._busy[room:]
        return fresh, held

    async def _write_all(self, fresh: list[Attempt], held: list[Attempt]) -> list[Attempt]:
        """Write a batch, plain completions apart: they cost half. Gives the attempts whose rows are busy."""
        plain: list[Attempt] = []
        rest: list[Attempt] = []
        for attempt in fresh:
            (plain if attempt.outcome == "completed" and attempt.progress is None else rest).append(attempt)
        rest += held
        busy = await self._write(plain, plain=True) if plain else []
        return busy + await self._write(rest) if rest else busy

    async def _write(self, batch: Sequence[Attempt], *, plain: bool = False) -> list[Attempt]:
        """Write attempts, however long the database is away; gives those whose rows are busy. `plain`: nothing but completions."""
        while True:
            try:
                started = monotonic()
                left = await self._store.ack_completed(batch, keep=self._keep) if plain else None
                if left is None:  # or somebody holds one of the rows: the other way passes over it
                    left = await self._store.ack(batch, keep=self._keep)
                self._metrics.ack_seconds.observe(monotonic() - started)
                self._metrics.ack_batch.observe(len(batch))
                self._on_written(batch if not left else [attempt for attempt in batch if attempt.id not in left])
                return await self._judge([attempt for attempt in batch if attempt.id in left] if left else [])
            except DatabaseUnavailableError as error:
                log.debug("ack will be repeated", extra={"jobs": len(batch), "error": str(error)})
                self._sent.update((attempt.id, attempt.lease) for attempt in batch)
                await asyncio.sleep(RETRY_PAUSE)
            except asyncpg.CheckViolationError as error:
                if "no partition" not in str(error):
                    return await self._write_apart(batch, error)
                log.warning("history has no partition for today, making it")
                await self._make_partition()
            except asyncpg.PostgresError as error:
                return await self._write_apart(batch, error)

    async def _judge(self, unwritten: Sequence[Attempt]) -> list[Attempt]:
        """Find out about attempts that were not written; gives the busy ones."""
        if not unwritten:
            self._sent.clear()
            return []
        fates = await self._store.ack_fate(
            unwritten, [(attempt.id, attempt.lease) in self._sent for attempt in unwritten], keep=self._keep
        )
        for attempt in unwritten:
            if fates[attempt.id] == "lost":
                self._metrics.lost_leases.inc()
                log.warning("lost lease", extra={"job": attempt.id, "outcome": attempt.outcome})
        return [attempt for attempt in unwritten if fates[attempt.id] == "busy"]

    async def _write_apart(self, batch: Sequence[Attempt], error: asyncpg.PostgresError) -> list[Attempt]:
        """Write a batch that the server refused in halves, so that the one that spoils it is found and the rest are kept."""
        if len(batch) > 1:
            middle = len(batch) // 2
            return await self._write(batch[:middle]) + await self._write(batch[middle:])
        attempt = batch[0]
        log.error(
            "an outcome could not be stored", extra={"job": attempt.id, "outcome": attempt.outcome, "error": str(error)}
        )
        stub = describe_error("Unstorable", f"the outcome {attempt.outcome} could not be stored: {error}")
        if attempt.outcome == "dead" and attempt.result is None and attempt.error == stub:
            raise error
        return await self._write([attempt._replace(outcome="dead", result=None, error=stub, delay=None)])

    async def _make_partition(self) -> None:
        if not await self._store.make_partitions(1):
            await asyncio.sleep(BUSY_PAUSE[1])


def _fitting(attempts: Sequence[Attempt]) -> int:
    """Give how many of these, from the first on, one statement may carry."""
    room = BATCH_BYTES
    for count, attempt in enumerate(attempts[:BATCH]):
        if attempt.result is not None or attempt.progress is not None:
            room -= len(attempt.result or b"") + len(attempt.progress or b"")
            if room < 0:
                return max(count, 1)
    return min(len(attempts), BATCH)
