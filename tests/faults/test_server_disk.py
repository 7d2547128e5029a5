"""The server's disk is full: it refuses writes, and then dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.servers import connected, own_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

    from howdah.embedded import EmbeddedPostgres

SIZE = 160  # MB
#: How long the worker has to stand it, in seconds.
LONG_ENOUGH = 3.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=0711", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small disk can be made here: {done.stderr.strip() or 'mount failed'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
@pytest.mark.fault("Server", "its disk is full", "the worker waits in silence; when there is room all of its jobs end")
async def test_a_full_disk_is_waited_out_and_then_everything_ends(
    daemon: StartDaemon, small_disk: Path, figures: Figures
) -> None:
    handlers = JOURNAL.replace(
        '@handler("innocent")', '@handler("innocent", max_attempts=1000, backoff=lambda attempt: 0.2)'
    )
    async with own_server(small_disk, min_wal_size="32MB", max_wal_size="48MB", fsync="on") as server:
        async with connected(server) as connection:
            await Checker(connection).install()
            worker = await daemon(handlers, url=server.url(), queues="default:10", lease_ttl=2)
            await enqueue_many(connection, *[{"kind": "innocent", "payload": {"seconds": 0.05}}] * 500)
            await aeventually(lambda: some_have_ended(connection))
            await asyncio.to_thread(fill, small_disk / "ballast")
            figures.faults += 1
            # Whoever writes now fills what is left of the log, and then nobody can write.
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await write_on(connection)
        lines, cpu = len(worker.logs()), cpu_seconds(worker)
        began = time.monotonic()
        await aeventually(lambda: time.monotonic() - began > LONG_ENOUGH)
        assert worker.process.poll() is None
        assert len(worker.logs()) - lines < 30, worker.output()[-4000:]
        assert cpu_seconds(worker) - cpu < LONG_ENOUGH / 2

        (small_disk / "ballast").unlink()
        began = time.monotonic()
        if not await accepts(server):
            await asyncio.to_thread(server.restart, immediate=True)
        async with connected(server) as connection:
            back = time.monotonic()
            await end_of(connection, await enqueue(connection, "innocent", priority=10))
            figures.recovered(time.monotonic() - back)
            await aeventually(lambda: is_empty(connection), timeout=60)
            await Checker(connection).check(figures=figures)
            assert await connection.fetchval("select count(*) from howdah.job_history where state <> 'completed'") == 0
            assert await connection.fetchval("select max(crashes) from howdah.job_history") == 0
        assert await worker.stop() == 0


async def write_on(connection: asyncpg.Connection) -> None:
    """Enqueue for as long as the server takes it."""
    while True:
        await enqueue_many(connection, *[{"kind": "innocent", "payload": {"text": "x" * 5000}}] * 100)


def fill(ballast: Path) -> None:
    """Leave no room on the disk."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


async def accepts(server: EmbeddedPostgres) -> bool:
    """Tell whether it still takes connections, or soon does after a crash."""

    async def answers() -> bool:
        async with connected(server):
            return True

    try:
        return await aeventually(answers, timeout=3)
    except AssertionError:
        return False


async def some_have_ended(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select count(*) > 50 from howdah.job_history"))


def cpu_seconds(worker: Daemon) -> float:
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
