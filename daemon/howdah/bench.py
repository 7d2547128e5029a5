"""`howdah bench`: how fast this worker is on this server, and what a job costs there.

Throughput is measured from the first claim to the last ack of jobs that do nothing, history kept. Latency is from just
before a single enqueue to the start of its handler, with the worker otherwise idle. The costs (statements, commits, WAL) do
not depend on the machine's speed.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg
import click
import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from howdah import logs
from howdah.config import Config, load_config
from howdah.database import connected
from howdah.embedded import EmbeddedPostgres
from howdah.errors import EmbeddedError
from howdah.migrate import migrate
from howdah.registry import Handler, Registry, handler, registry
from howdah.service import Limits, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from howdah.job import Job

QUEUE = KIND = "howdah_bench"
#: As a busy production server would be set; durable, as every figure here is.
SERVER = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "synchronous_commit": "on",
    "fsync": "on",
}
#: Counts statements; a distribution's PostgreSQL may come without it.
COUNTING = {"shared_preload_libraries": "pg_stat_statements"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a bench run found."""

    postgres: str
    jobs: int
    slots: int
    enqueued_per_second: float
    drained_per_second: float
    worker_cpu_us_per_job: float
    worker_max_rss_mb: float
    statements_per_job: float | None
    commits_per_job: float
    wal_bytes_per_job: float
    buffers_per_job: float | None
    heap_only_claims: float
    idle_latency_p50_ms: float
    idle_latency_p99_ms: float


@click.command()
@click.option(
    "--database-url", metavar="URL", help="An existing database, migrated; else one of our own, thrown away after."
)
@click.option("--jobs", type=click.IntRange(min=1000), default=100_000, show_default=True, help="How many.")
@click.option("--slots", type=click.IntRange(min=1), default=100, show_default=True, help="How many run at once.")
@click.option(
    "--latencies", type=click.IntRange(min=10), default=200, show_default=True, help="Single jobs for the latency."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def bench(*, database_url: str | None, jobs: int, slots: int, latencies: int, as_json: bool) -> None:
    """Measure throughput, latency and cost per job with jobs that do nothing.

    Without --database-url nothing but a throw-away server is touched. With it, the jobs go through a queue of their own.

    \b
    howdah bench
    howdah bench --jobs 20000 --json
    """
    logs.configure(style="console", level="warning")
    with _server(database_url) as url:
        config = load_config(database_url=url, queues={QUEUE: slots}, handlers=[__name__], http_port=0)
        figures = uvloop.run(_measure(config, jobs, slots, latencies))
    if as_json:
        click.echo(orjson.dumps(asdict(figures)).decode())
    else:
        _show(figures)


async def _measure(config: Config, jobs: int, slots: int, latencies: int) -> Figures:
    url = config.database_url or ""
    async with connected(url, name="bench") as connection:
        await migrate(connection)
        enqueued = await _fill(connection, jobs)
        before = await _counters(connection)
        cpu = _cpu()
        drained = await _drain(config, connection, jobs)
        cpu = _cpu() - cpu
        after = await _counters(connection)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
        waits = sorted(await _latencies(config, connection, latencies))
        version = await connection.fetchval("select current_setting('server_version')")
    spent = {name: after[name] - before[name] for name in before}
    return Figures(
        postgres=str(version).split()[0],
        jobs=jobs,
        slots=slots,
        enqueued_per_second=round(enqueued),
        drained_per_second=round(drained),
        worker_cpu_us_per_job=round(cpu / jobs * 1e6, 1),
        worker_max_rss_mb=round(rss, 1),
        statements_per_job=round(spent["statements"] / jobs, 4) if spent["statements"] else None,
        commits_per_job=round(spent["commits"] / jobs, 4),
        wal_bytes_per_job=round(spent["wal"] / jobs),
        buffers_per_job=round(spent["buffers"] / jobs, 1) if spent["statements"] else None,
        heap_only_claims=round(spent["hot"] / max(spent["updates"], 1), 4),
        idle_latency_p50_ms=round(waits[len(waits) // 2] * 1000, 2),
        idle_latency_p99_ms=round(waits[min(int(len(waits) * 0.99), len(waits) - 1)] * 1000, 2),
    )


async def _fill(connection: asyncpg.Connection, jobs: int) -> float:
    """Enqueue in calls of a thousand; gives jobs per second."""
    began = monotonic()
    for first in range(0, jobs, 1000):
        some = [{"kind": KIND, "queue": QUEUE, "payload": {"n": first + n}} for n in range(min(1000, jobs - first))]
        await connection.execute("select count(*) from howdah.enqueue_many($1)", some)
    rate = jobs / (monotonic() - began)
    await connection.execute("vacuum (analyze) howdah.jobs")
    await connection.execute("checkpoint")
    return rate


async def _drain(config: Config, connection: asyncpg.Connection, jobs: int) -> float:
    """Let a worker run until the table is done; gives jobs per second from the first claim to the last ack, by the database's clock."""
    last = await connection.fetchval("select coalesce(max(id), 0) from howdah.jobs") - jobs
    await Service(config, _handlers(), limits=Limits(until_empty=True)).run()
    done, seconds = await connection.fetchrow(
        "select count(*), extract(epoch from max(finished_at) - min(claimed_at))::float8 from howdah.job_history where kind = $1 and id > $2",
        KIND,
        last,
    ) or (0, 1.0)
    if done != jobs:
        left = await connection.fetch("select state, count(*) from howdah.jobs group by state")
        raise click.ClickException(
            f"{jobs} jobs were enqueued and {done} are in the history; left: {[tuple(row) for row in left]}"
        )
    return float(jobs / seconds)


async def _latencies(config: Config, connection: asyncpg.Connection, count: int) -> list[float]:
    """Enqueue single jobs to an idle worker; gives the seconds from just before the enqueue to the start of each."""
    waits = []
    async with _working(config) as started:
        for n in range(count):
            # An irregular beat, so that no poll falls in with it.
            await asyncio.sleep(0.02 + (n * 7 % 13) / 1000)
            began = monotonic()
            await connection.execute("select howdah.enqueue($1, queue => $2)", KIND, QUEUE)
            waits.append(await started.get() - began)
    return waits


@asynccontextmanager
async def _working(config: Config) -> AsyncIterator[asyncio.Queue[float]]:
    """Run a worker; gives a queue of the moments at which its handler was called."""
    started: asyncio.Queue[float] = asyncio.Queue()
    service = Service(config, _handlers(started))
    task = asyncio.create_task(service.run())
    ready = asyncio.create_task(service.ready())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield started
    finally:
        service.stop("bench is over")
        await task


def _handlers(started: asyncio.Queue[float] | None = None) -> Registry:
    """Make a registry of the one kind, without touching the process's own."""

    @handler(KIND, queue=QUEUE)
    async def nothing(_job: Job[Any]) -> None:
        if started is not None:
            started.put_nowait(monotonic())

    only = Registry()
    only.add(_taken(KIND))
    return only


def _taken(kind: str) -> Handler:
    taken = registry.take(kind)
    if taken is None:
        raise AssertionError("the decorator above put it there")
    return taken


async def _counters(connection: asyncpg.Connection) -> dict[str, float]:
    """Read the server's counters, after the other backends have told theirs."""
    await asyncio.sleep(1.1)
    row = await connection.fetchrow(
        "select d.xact_commit + d.xact_rollback as commits, pg_current_wal_lsn() - '0/0' as wal, t.n_tup_upd as updates,"
        " t.n_tup_hot_upd as hot from pg_stat_database d, pg_stat_user_tables t"
        " where d.datname = current_database() and t.schemaname = 'howdah' and t.relname = 'jobs'"
    )
    counters = {name: float(value) for name, value in (row or {}).items()}
    try:
        await connection.execute("create extension if not exists pg_stat_statements")
        row = await connection.fetchrow(
            "select sum(calls), sum(shared_blks_hit + shared_blks_read) from pg_stat_statements s"
            " join pg_database d on d.oid = s.dbid where d.datname = current_database()"
        )
    except asyncpg.PostgresError:
        row = None  # not loaded there; the commits say as much, one statement each
    statements, buffers = row or (0, 0)
    return {**counters, "statements": float(statements or 0), "buffers": float(buffers or 0)}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="howdah-bench-") as folder,
        _started(Path(folder) / "server") as server,
    ):
        yield server.url()


@contextmanager
def _started(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder, settings=SERVER | COUNTING)
    try:
        server.start()
    except EmbeddedError:
        server = EmbeddedPostgres(folder, settings=SERVER)
        server.start()
    try:
        yield server
    finally:
        server.stop()


def _show(figures: Figures) -> None:
    table = Table(title=f"howdah bench, PostgreSQL {figures.postgres}, {figures.jobs} jobs, {figures.slots} slots")
    table.add_column("figure")
    table.add_column("value", justify="right")
    rows: dict[str, Any] = asdict(figures)
    for name, value in rows.items():
        if name not in {"postgres", "jobs", "slots"}:
            table.add_row(name.replace("_", " "), "not known" if value is None else f"{value:,}")
    Console().print(table)
