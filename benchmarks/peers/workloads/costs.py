"""What a job costs the server and the worker: statements, commits, WAL, CPU and memory of a drain; and what idleness costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from peers.drain import make_task, prepare, run_worker
from peers.worker import working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "costs"
TITLE = "Costs"
ROUNDS = 1
PEERS = ("howdah", "graphile-worker", "pgqueuer", "pg-boss", "oban")
#: Pauses between polls that grow have grown by then, and late words of what came before have arrived, in seconds.
CALM = 45
COUNTERS = """
select d.xact_commit + d.xact_rollback as commits, (pg_current_wal_lsn() - '0/0')::float8 as wal,
  coalesce((select sum(s.calls) from public.pg_stat_statements s where s.dbid = d.datid), 0)::float8 as statements
from pg_stat_database d where d.datname = $1"""


def takes(peer: Peer) -> bool:
    """Tell whether it is one of the fastest, or oban, which is most like Howdah."""
    return peer.name in PEERS


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Drain with the counters on, then leave a worker idle."""
    yield {"case": "under load", **await _drained(bench, peer)}
    yield {"case": "idle", **await _idle(bench, peer)}


async def _drained(bench: Bench, peer: Peer) -> Figures:
    count = bench.of(quick=20_000, standard=100_000)
    database = await prepare(bench, peer, count)
    await _count(bench, database)
    before = await _counters(bench, database)
    async with bench.server.connected(database) as connection:
        figures = await run_worker(bench, peer, connection, database, count=count, seconds=60)
    spent = await _spent(bench, database, before)
    await bench.server.drop(database)
    kept = {name: figures[name] for name in ("jobs", "settings", "cpu_us", "rss", "durable")}
    return kept | {f"{name}_per_job": value / figures["jobs"] for name, value in spent.items()}


async def _idle(bench: Bench, peer: Peer) -> Figures:
    seconds = bench.of(quick=10, standard=60)
    database = await prepare(bench, peer, 0)
    await _count(bench, database)
    task = make_task(bench, peer, database, count=1, form="latency")
    async with bench.server.quiet(), working(bench.installed[peer.name], task) as worker:
        await bench.pause(bench.of(quick=5, standard=CALM))
        before, (cpu, _) = await _counters(bench, database), worker.used()
        began = time.monotonic()
        await bench.pause(seconds)
        elapsed = time.monotonic() - began
        spent, (cpu_after, rss) = await _spent(bench, database, before), worker.used()
    await bench.server.drop(database)
    return {
        "seconds": elapsed,
        "settings": task["settings"],
        "transactions_per_second": spent["commits"] / elapsed,
        "statements_per_second": spent["statements"] / elapsed,
        "cpu_share": (cpu_after - cpu) / elapsed,
        "rss": rss,
    }


async def _count(bench: Bench, database: str) -> None:
    """Let the database's statements be counted."""
    async with bench.server.connected() as connection:
        await connection.execute("create extension if not exists pg_stat_statements")
        await connection.execute(f"alter database \"{database}\" set pg_stat_statements.track = 'top'")


async def _counters(bench: Bench, database: str) -> dict[str, float]:
    """Read the counters, from another database: asking costs nothing there."""
    await bench.pause(1.1)  # backends tell of what they did once a second
    async with bench.server.connected() as connection:
        row = await connection.fetchrow(COUNTERS, database)
    return {name: float(value) for name, value in (row or {}).items()}


async def _spent(bench: Bench, database: str, before: dict[str, float]) -> dict[str, float]:
    after = await _counters(bench, database)
    return {name: after[name] - value for name, value in before.items()}
