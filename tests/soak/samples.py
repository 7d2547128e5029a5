"""The samples: every five seconds what the workers and the server use, and how the work goes."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from soak.stage import Stage
    from soak.workers import Fleet

INTERVAL = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")
_MB = 1 << 20

_WORK = """
select (select coalesce(sum(jobs), 0) from soak.batches)::bigint as committed, count(*) as live, count(*) filter (where lease is not null) as running,
       coalesce(extract(epoch from clock_timestamp() - min(ready_at) filter (where state = 'ready')), 0)::float8 as oldest
from howdah.jobs"""
_SIZES = """
select pg_relation_size('howdah.jobs') as jobs, pg_indexes_size('howdah.jobs') as indexes,
       (select sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits where inhparent = 'howdah.job_history'::regclass) as history,
       (select n_dead_tup from pg_stat_user_tables where relid = 'howdah.jobs'::regclass) as dead,
       (select count(*) from pg_stat_activity where application_name like 'howdah%') as connections,
       (select max(n) from (select count(*) as n from howdah.holds where key = 'soak' group by key) h) as held"""


@dataclass
class Process:
    """What one worker's process used at a moment: bytes, and CPU seconds since its start."""

    life: int
    rss: int
    pss: int
    cpu: float


@dataclass
class Sample:
    """One moment, `at` seconds into the run. What could not be asked, because the server was away, is None."""

    at: float
    workers: dict[int, Process]
    server_cpu: float
    finished: int | None = None
    live: int | None = None
    oldest: float | None = None
    connections: int | None = None
    jobs_bytes: int | None = None
    index_bytes: int | None = None
    history_bytes: int | None = None
    dead: int | None = None
    held: int | None = None


@dataclass
class Samples:
    """Takes them for as long as it runs."""

    stage: Stage
    fleet: Fleet
    began: float
    taken: list[Sample] = field(default_factory=list)

    async def run(self) -> None:
        """Take one every few seconds, until cancelled."""
        while True:
            before = monotonic()
            self.taken.append(await self.take())
            await asyncio.sleep(max(INTERVAL - (monotonic() - before), 0.5))

    async def take(self) -> Sample:
        sample = Sample(monotonic() - self.began, self._processes(), _server_cpu(self.stage))
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await self.stage.connect(command_timeout=20)
            try:
                work = await connection.fetchrow(_WORK)
                sizes = await connection.fetchrow(_SIZES)
            finally:
                connection.terminate()
            sample.finished, sample.live, sample.oldest = work["committed"] - work["live"], work["live"], work["oldest"]
            sample.jobs_bytes, sample.index_bytes, sample.history_bytes = (
                sizes["jobs"],
                sizes["indexes"],
                sizes["history"],
            )
            sample.dead, sample.connections, sample.held = sizes["dead"], sizes["connections"], sizes["held"] or 0
        return sample

    def _processes(self) -> dict[int, Process]:
        found = {}
        for worker in self.fleet.workers:
            with suppress(OSError, IndexError, StopIteration):
                pid = worker.life.process.pid
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                kilobytes = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in rollup.splitlines()[1:]}
                found[worker.number] = Process(
                    worker.life.number, kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024, _cpu(pid)
                )
        return found


def _cpu(pid: int, *, children: bool = False) -> float:
    """Give the CPU seconds of a process, with those of children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


def _server_cpu(stage: Stage) -> float:
    """Give the CPU seconds of the server since its last start: the postmaster, its backends that live and those that are gone."""
    with suppress(Exception):
        postmaster = stage.server.pid
        backends = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text(encoding="ascii").split()
        total = _cpu(postmaster, children=True)
        for backend in backends:
            with suppress(OSError, IndexError):
                total += _cpu(int(backend))
        return total
    return 0.0
