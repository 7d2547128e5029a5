"""The count of everything: once in a while the leading worker reads the state of the whole database onto the board."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import DatabaseUnavailableError
from howdah.vitals import GRACE, SWEEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from howdah.board import Samples
    from howdah.metrics import Metrics
    from howdah.store import CensusRow, Depth, Store
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.census")

#: Between counts, in seconds, and at least so many times as long as one took.
INTERVAL, SHARE = 20.0, 100
#: How soon a worker that has come to lead begins to count, and how soon after a failure, in seconds.
LEAD_INTERVAL, FAILED_INTERVAL = 1.0, 5.0
#: Queues with a label of their own: anybody who may enqueue can make a name. The others are counted together.
QUEUES, OTHER = 100, "other"
#: What else is told by queue, and what makes one figure of several.
BY_QUEUE: Mapping[str, Callable[[Iterable[float]], float]] = {
    "howdah_orphan_jobs": sum,
    "howdah_queue_paused_seconds": max,
}


class Census:
    """Counts, if this worker leads; the others say nothing, so that sums come out right."""

    def __init__(self, *, store: Store, vitals: Vitals, metrics: Metrics, queues: Iterable[str]) -> None:
        self._store = store
        self._vitals = vitals
        self._board = metrics.board
        self._own = frozenset(queues)
        #: The oldest snapshot of each sort of holder, and since when this worker has seen it.
        self._held: dict[str, tuple[str, float]] = {}
        metrics.leading.set_function(lambda: float(vitals.leads))

    async def run(self) -> None:
        """Count for as long as the service lives. What the server refuses is said once, and counted without."""
        said = ""
        while True:
            if not self._vitals.leads:
                self._board.tell({})
                await asyncio.sleep(LEAD_INTERVAL)
                continue
            began = monotonic()
            try:
                await self._count(began)
                pause = max(INTERVAL, (monotonic() - began) * SHARE)
            except DatabaseUnavailableError as error:
                log.debug("count failed", extra={"error": str(error)})
                pause = FAILED_INTERVAL
            except asyncpg.PostgresError as error:
                if str(error) != said:
                    log.warning("cannot count", extra={"error": str(error)})
                    said = str(error)
                pause = INTERVAL
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait, but say no more as soon as another worker leads."""
        until = monotonic() + seconds
        while self._vitals.leads and monotonic() < until:  # noqa: ASYNC110  # the lifeline writes it, without a word
            await asyncio.sleep(min(LEAD_INTERVAL, max(until - monotonic(), 0.0)))

    async def _count(self, began: float) -> None:
        depth, census = await self._store.depth(), await self._store.census(sweep=SWEEP, grace=GRACE)
        ended = monotonic()
        figures: dict[str, Samples] = {"howdah_census_seconds": [((), ended - began)]}
        self._add_depth(figures, depth)
        for row in census:
            value = self._since(row, ended) if row.name == "howdah_xmin_held_seconds" else row.value
            if value is not None:
                figures.setdefault(row.name, []).append((tuple(row.labels), value))
        for name, join in BY_QUEUE.items():
            figures[name] = self._bounded(figures.get(name, []), join)
        self._board.tell(figures)

    def _add_depth(self, figures: dict[str, Samples], depth: list[Depth]) -> None:
        """Sum the jobs by label; a queue that this worker serves has its zeros, or its graph would end where it is empty."""
        named = self._named(row.queue for row in depth)
        jobs = {(queue, state): 0.0 for queue in self._own for state in ("ready", "running")}
        oldest = dict.fromkeys(self._own, 0.0)
        for row in depth:
            queue = row.queue if row.queue in named else OTHER
            jobs[queue, row.state] = jobs.get((queue, row.state), 0.0) + row.jobs
            if row.state == "ready":
                oldest[queue] = max(oldest.get(queue, 0.0), row.oldest or 0.0)
        figures["howdah_jobs"] = list(jobs.items())
        figures["howdah_oldest_ready_seconds"] = [((queue,), age) for queue, age in oldest.items()]

    def _bounded(self, samples: Samples, join: Callable[[Iterable[float]], float]) -> Samples:
        """Put the samples of queues without a label of their own together."""
        named = self._named(labels[0] for labels, _ in samples)
        values: dict[str, list[float]] = {}
        for (queue,), value in samples:
            values.setdefault(queue if queue in named else OTHER, []).append(value)
        return [((queue,), join(held)) for queue, held in values.items()]

    def _named(self, queues: Iterable[str]) -> frozenset[str]:
        """Give the queues that have a label of their own: this worker's, and the first of the others by name."""
        return self._own | frozenset(sorted(set(queues) - self._own)[:QUEUES])

    def _since(self, row: CensusRow, now: float) -> float:
        """Give for how long a snapshot has been held: as the server says, else since it was seen first."""
        holder, who = row.labels[0], row.who or ""
        seen, since = self._held.get(holder, ("", now))
        if seen != who:
            since = now
        self._held[holder] = (who, since)
        return max(row.value or 0.0, now - since)
