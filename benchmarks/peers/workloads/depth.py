"""Throughput beside much that lies in the tables: a deep queue, jobs for later, jobs that nobody can run, years of history.

Each is measured in turns with the same worker on a queue of as many jobs as it drains and nothing else.
"""

from __future__ import annotations

import shutil
import statistics
from typing import TYPE_CHECKING

from peers.drain import prepare, run_worker
from peers.install import CACHE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "depth"
TITLE = "Depth"
ROUNDS = 1
JOB = "jsonb_build_object('n', n, 't', 1.5, 'fails', false, 'pad', 'pppppppppppppppppppppppppppppppppppppppp')"
QUEUED = "insert into howdah.jobs (kind, payload) select 'job', {job} from generate_series({first}, {last}) n"
LATER = (
    "insert into howdah.jobs (kind, payload, due_at) select 'job', {job}, now() + interval '1 day' + n * interval '1 ms'"
    " from generate_series({first}, {last}) n"
)
UNKNOWN = "insert into howdah.jobs (kind, payload) select 'unknown', {job} from generate_series({first}, {last}) n"
HISTORY = (
    "insert into howdah.job_history (id, created_at, ready_at, claimed_at, started_at, finished_at, lease, leased_by, priority,"
    " attempt, max_attempts, crashes, queue, kind, state, payload) select -n, now(), now(), now(), now(), now(), n, 1, 0, 1, 3, 0,"
    " 'default', 'job', 'completed', '{{}}' from generate_series({first}, {last}) n"
)
STEP = 1_000_000
#: What a row takes with its indexes, and what is left free on the disk whatever happens.
JOB_BYTES, HISTORY_BYTES, LEFT_FREE = 700, 300, 20 * 2**30


def takes(peer: Peer) -> bool:
    """Take Howdah alone."""
    return peer.name == "howdah"


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Measure beside each kind of mass."""
    masses = {
        "queued": (QUEUED, bench.of(quick=200_000, standard=5_000_000)),
        "scheduled for later": (LATER, bench.of(quick=200_000, standard=5_000_000)),
        "of an unknown kind at the head": (UNKNOWN, bench.of(quick=100_000, standard=1_000_000)),
        "rows of history": (HISTORY, bench.of(quick=200_000, standard=5_000_000, full=100_000_000)),
    }
    if bench.mass:
        masses = {name: (statement, bench.mass) for name, (statement, _) in masses.items()}
    for name, (statement, count) in masses.items():
        if bench.wants(case := f"{count:,} {name}"):
            yield {"case": case, **await _beside(bench, peer, statement, count)}


async def _beside(bench: Bench, peer: Peer, statement: str, count: int) -> Figures:
    """Drain the same number of jobs beside the mass and alone, in turns; both databases stay for all turns."""
    jobs = bench.of(quick=20_000, standard=100_000)
    _mind_disk(count * (HISTORY_BYTES if statement == HISTORY else JOB_BYTES))
    alone = await prepare(bench, peer, 0)
    beside = f"{alone}_deep"
    await bench.server.rename(alone, beside)
    alone = await prepare(bench, peer, 0)
    async with bench.server.connected(beside) as deep, bench.server.connected(alone) as plain:
        await deep.execute("alter table howdah.jobs set (autovacuum_enabled = off)")
        for first in range(1, count + 1, STEP):
            await deep.execute(statement.format(job=JOB, first=first, last=min(first + STEP - 1, count)))
        await deep.execute("alter table howdah.jobs reset (autovacuum_enabled)")
        await bench.server.settle(beside)
        rates: dict[str, list[float]] = {"beside": [], "alone": []}
        for number in range(bench.of(quick=1, standard=3)):
            pair = (("beside", deep, beside), ("alone", plain, alone))
            for name, connection, database in pair if number % 2 else pair[::-1]:
                rates[name].append(
                    await _rate(bench, peer, connection, database, jobs, fill=name == "alone" or statement != QUEUED)
                )
    await bench.server.drop(alone)
    await bench.server.drop(beside)
    found, expected = statistics.median(rates["beside"]), statistics.median(rates["alone"])
    return {"jobs": jobs, "handled": found, "alone": expected, "ratio": found / expected}


def _mind_disk(needed: int) -> None:
    """Refuse what the disk has no room for."""
    free = shutil.disk_usage(CACHE).free
    if free - needed < LEFT_FREE:
        raise OSError(
            f"{needed / 2**30:.0f} GB are needed in {CACHE}, and {LEFT_FREE / 2**30:.0f} GB to be left free; {free / 2**30:.0f} are free: --mass N"
        )


async def _rate(
    bench: Bench, peer: Peer, connection: asyncpg.Connection, database: str, jobs: int, *, fill: bool
) -> float:
    """Let a worker do so many jobs; gives handlers per second, for with a deep queue the table is never done."""
    if fill:
        await connection.execute(QUEUED.format(job=JOB, first=1, last=jobs))
    await connection.execute("vacuum howdah.jobs")
    await connection.execute("checkpoint")
    figures = await run_worker(bench, peer, connection, database, count=jobs, seconds=60, until_empty=False)
    return float(figures["handled"])
