"""What one PostgreSQL carries: jobs that do nothing, drained by 1, 2, 4 and 8 daemons, as a table for docs/operating.md.

The server is a throw-away one on this machine, set as `howdah bench` sets it: durable, fsync on. The queue is filled while it is paused; the clock runs
from `resume` to the last job's end. Server and workers share the machine's cores, so the table says what the machine carries, not the server alone.

    .venv/bin/python benchmarks/carry.py --jobs 60000
    .venv/bin/python benchmarks/carry.py --daemons 4
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.bench import SERVER
from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKS = os.sysconf("SC_CLK_TCK")
HANDLERS = """
from howdah import Job, handler

@handler("carry")
async def carry(job: Job) -> None: ...
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    daemons: int
    drained: float
    server_cpu: float
    workers_cpu: float
    connections: int
    wal: float
    history: float
    live: float
    memory: float


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60_000)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--daemons", type=int, nargs="*", default=[1, 2, 4, 8])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="howdah-carry-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "postgres", settings=SERVER) as server:
            rows = [
                asyncio.run(measure(server, Path(folder), count, given.jobs, given.slots)) for count in given.daemons
            ]
            version = asyncio.run(ask(server.url(), "show server_version"))
    print(
        f"PostgreSQL {version.split()[0]}, {os.cpu_count()} cores for server and workers together, Python {platform.python_version()}, {given.jobs:,} jobs, {given.slots} slots a daemon\n"
    )
    print(
        "| daemons | jobs/s | CPU of the server | CPU of the workers | connections | WAL a job | history, a million jobs | live, a million jobs | memory of a worker |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.daemons} | {row.drained:,.0f} | {row.server_cpu:.0f} µs a job | {row.workers_cpu:.0f} µs a job | {row.connections} | {row.wal:,.0f} bytes "
            f"| {row.history:,.0f} MB | {row.live:,.0f} MB | {row.memory:.0f} MB |"
        )


async def measure(server: EmbeddedPostgres, folder: Path, daemons: int, jobs: int, slots: int) -> Row:
    """Drain a queue with so many daemons, in a database of its own."""
    name = f"carry{daemons}"
    await ask(server.url(), f"create database {name}")
    url = server.url(name)
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.execute("select howdah.pause('carry')")
    place = folder / name
    place.mkdir()
    (place / "handlers.py").write_text(HANDLERS)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HOWDAH_", "PG"))}
    environment |= {
        "HOWDAH_DATABASE_URL": url,
        "HOWDAH_QUEUES": f"carry:{slots}",
        "HOWDAH_HTTP_PORT": "0",
        "HOWDAH_LOG_LEVEL": "warning",
    }
    running = [
        subprocess.Popen([sys.executable, "-m", "howdah", "run"], cwd=place, env=environment, stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - they return at once
        for _ in range(daemons)
    ]
    try:
        while await connection.fetchval("select count(*) from howdah.workers") < daemons:  # noqa: ASYNC110 - the database says it
            await asyncio.sleep(0.1)
        for first in range(0, jobs, 10_000):
            await connection.execute(
                """select count(*) from howdah.enqueue_many((select jsonb_agg(jsonb_build_object('kind', 'carry', 'queue', 'carry',
                'payload', jsonb_build_object('n', n, 'to', 'somebody@example.com'))) from generate_series($1::int, $2::int) n))""",
                first, min(first + 10_000, jobs) - 1,
            )  # fmt: skip
        live = await connection.fetchval("select pg_total_relation_size('howdah.jobs')")
        await connection.execute("vacuum analyze howdah.jobs")
        await connection.execute("checkpoint")
        workers, backends = [process.pid for process in running], list(family(server.pid))
        wal, cpu = await connection.fetchval("select pg_current_wal_lsn()"), (spent(workers), spent(backends))
        began = monotonic()
        await connection.execute("select howdah.resume('carry')")
        while await connection.fetchval("select exists (select from howdah.jobs)"):  # noqa: ASYNC110 - the database says it
            await asyncio.sleep(0.05)
        seconds = monotonic() - began
        after = (spent(workers), spent(list(family(server.pid))))
        return Row(
            daemons=daemons,
            drained=jobs / seconds,
            server_cpu=(after[1] - cpu[1]) / jobs * 1e6,
            workers_cpu=(after[0] - cpu[0]) / jobs * 1e6,
            connections=await connection.fetchval(
                "select count(*) from pg_stat_activity where application_name like 'howdah %'"
            ),
            wal=float(await connection.fetchval("select pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", wal)) / jobs,
            history=float(
                await connection.fetchval(
                    "select sum(pg_total_relation_size(inhrelid)) from pg_inherits where inhparent = 'howdah.job_history'::regclass"
                )
            )
            / jobs,
            live=live / jobs,
            memory=max(resident(pid) for pid in workers) / 1e6,
        )
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
        await connection.close()


async def ask(url: str, statement: str) -> Any:
    """Run one statement and give its value."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def family(pid: int) -> Iterator[int]:
    """Give a process and its children."""
    yield pid
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(number))


def spent(pids: list[int]) -> float:
    """Give the CPU seconds of processes, and of those children of the first that have ended."""
    total = 0
    for place, pid in enumerate(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12]) + (int(fields[13]) + int(fields[14]) if place == 0 else 0)
    return total / TICKS


def resident(pid: int) -> int:
    """Give the bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
