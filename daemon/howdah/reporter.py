"""Once a second: what is worth knowing of running jobs, that they started and how far they are."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from howdah.executor import Executor
    from howdah.job import Job
    from howdah.store import Store

log = logging.getLogger("howdah.reporter")

INTERVAL = 1.0
#: Before a start is written again whose row somebody held, in seconds.
BUSY_PAUSE = 0.02
#: The most bytes of progress in one statement, beyond those of the first: the server hangs up on a gigabyte.
REPORT_BYTES = 8 << 20


class Reporter:
    """Writes starts and progress of running jobs, all of them in one statement each, fenced."""

    def __init__(self, *, store: Store, executor: Executor) -> None:
        self._store = store
        self._executor = executor

    async def run(self) -> None:
        """Write once a second what there is to write; a failed write is repeated, and hurts no job."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self._write_starts()
                await self._write_progress()
            except DatabaseUnavailableError as error:
                log.debug("report failed", extra={"error": str(error)})

    async def write_start(self, job: Job[Any]) -> bool:
        """Write one job's start before its handler is called; tells whether the job is still this worker's.

        Waits while somebody holds the row: neither may the handler be called, nor the job be left lying in our hand.
        """
        while True:
            try:
                if job.id in await self._store.start([(job.id, job.lease, 0.0)]):
                    job.told_start = True
                    return True
                if (await self._store.ack_fate([job], [False], keep=True))[job.id] != "busy":
                    return False
            except DatabaseUnavailableError as error:
                log.debug("start failed", extra={"error": str(error)})
            await asyncio.sleep(BUSY_PAUSE)

    async def _write_starts(self) -> None:
        now = monotonic()
        jobs = [job for job in self._executor.running.values() if not job.told_start and now - job.started > INTERVAL]
        if jobs:
            held = await self._store.start([(job.id, job.lease, now - job.started) for job in jobs])
            for job in jobs:
                job.told_start = job.id in held

    async def _write_progress(self) -> None:
        jobs = self._executor.take_reports()
        if not jobs:
            return
        try:
            written: set[int] = set()
            for some in _portions(jobs):
                written |= await self._store.report([(job.id, job.lease, job.progress or b"null") for job in some])
        except DatabaseUnavailableError:
            self._keep(jobs)
            raise
        except asyncpg.PostgresError as error:
            log.warning("progress could not be stored", extra={"error": str(error)})
            return
        self._keep([job for job in jobs if job.id not in written])

    def _keep(self, jobs: list[Job[Any]]) -> None:
        """Try again with those that still run; an ended job's last progress was taken by its ack, or is lost with its lease."""
        for job in jobs:
            if job.id in self._executor.running:
                self._executor.report_again(job)


def _portions(jobs: Sequence[Job[Any]]) -> Iterator[list[Job[Any]]]:
    portion: list[Job[Any]] = []
    room = REPORT_BYTES
    for job in jobs:
        room -= len(job.progress or b"")
        if room < 0 and portion:
            yield portion
            portion, room = [], REPORT_BYTES - len(job.progress or b"")
        portion.append(job)
    yield portion
