"""The daemons: started as an operator would, one killed without warning, the other stopped politely."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.errors import DemoError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    import asyncpg

LEASE_TTL = 3  # seconds; a killed daemon's jobs are taken back after so long
_START_TIMEOUT = 30.0
_WORK_TIMEOUT = 20.0
_STOP_TIMEOUT = 30.0
_LOOK = 0.02
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Daemon:
    """A running daemon; `worker` is its id in howdah.workers."""

    name: str
    process: Process
    log: Path
    worker: int

    def check_alive(self) -> None:
        """Raise DemoError with the log's last lines if it has ended."""
        if self.process.returncode is not None:
            raise _ended(self.name, self.process.returncode, self.log)


@asynccontextmanager
async def daemons(
    url: str, logs: Path, pool: asyncpg.Pool, environment: dict[str, str], *, count: int
) -> AsyncIterator[list[Daemon]]:
    """Start daemons and give them once they work. Whatever happens, none is left at the end."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(1, count + 1):
            log = logs / f"daemon-{number}.log"
            process = await _start(url, log, environment)
            stack.push_async_callback(_make_sure_it_ended, process)
            started.append((f"daemon {number}", process, log))
        yield [Daemon(name, process, log, await _worker_id(pool, name, process, log)) for name, process, log in started]


async def kill_while_it_works(daemon: Daemon, pool: asyncpg.Pool) -> list[int]:
    """Kill -9 a daemon at a moment when it holds jobs, and return their ids.

    Somebody edits posts meanwhile: that transaction makes the jobs of these posts wait, so that there is something to
    hold. The daemon is frozen first; what it held then is what dies with it.
    """
    async with pool.acquire() as editor:
        transaction = editor.transaction()
        await transaction.start()
        await editor.execute(
            "update app.posts set updated_at = now() where id in (select id from app.posts order by created_at limit 4)"
        )
        try:
            deadline = asyncio.get_running_loop().time() + _WORK_TIMEOUT
            while asyncio.get_running_loop().time() < deadline:
                daemon.check_alive()
                daemon.process.send_signal(signal.SIGSTOP)
                held = await _settled(pool, daemon.worker)
                if held:
                    daemon.process.kill()
                    await daemon.process.wait()
                    return held
                daemon.process.send_signal(signal.SIGCONT)
                await asyncio.sleep(_LOOK)
            raise DemoError(f"{daemon.name} has not held a job for {_WORK_TIMEOUT:g} s")
        finally:
            await transaction.rollback()


async def stop_cleanly(daemon: Daemon) -> None:
    """Send SIGTERM. Raises DemoError unless it drains and exits 0."""
    daemon.check_alive()
    daemon.process.terminate()
    try:
        code = await asyncio.wait_for(daemon.process.wait(), _STOP_TIMEOUT)
    except TimeoutError:
        raise DemoError(f"{daemon.name} has not ended {_STOP_TIMEOUT:g} s after SIGTERM{_tail(daemon.log)}") from None
    if code != 0:
        raise _ended(daemon.name, code, daemon.log)


async def _start(url: str, log: Path, environment: dict[str, str]) -> Process:
    settings = {
        "HOWDAH_DATABASE_URL": url,
        "HOWDAH_HANDLERS": "handlers",
        "HOWDAH_HTTP_PORT": "0",
        "HOWDAH_LEASE_TTL": str(LEASE_TTL),
        "HOWDAH_LOG_FORMAT": "json",
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HOWDAH_", "APP_"))}
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "howdah",
            "run",
            env=ours | settings | environment,
            cwd=_REPOSITORY,
            stdout=output,
            stderr=output,
        )


async def _worker_id(pool: asyncpg.Pool, name: str, process: Process, log: Path) -> int:
    """Wait until a daemon has entered itself as a worker."""
    deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            raise _ended(name, process.returncode, log)
        worker: int | None = await pool.fetchval(
            "select w.id from howdah.workers w where split_part(w.name, ':', -1) = $1", str(process.pid)
        )
        if worker is not None:
            return worker
        await asyncio.sleep(_LOOK)
    raise DemoError(f"{name} is not working after {_START_TIMEOUT:g} s{_tail(log)}")


async def _settled(pool: asyncpg.Pool, worker: int) -> list[int]:
    """Give the jobs that a frozen worker holds, once the server has done what the worker had sent before it froze."""
    before = None
    while True:
        held = [
            row["id"] for row in await pool.fetch("select id from howdah.jobs where leased_by = $1 order by id", worker)
        ]
        if held == before:
            return held
        before = held
        await asyncio.sleep(_LOOK)


async def _make_sure_it_ended(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _ended(name: str, code: int, log: Path) -> DemoError:
    return DemoError(f"{name} has ended with exit code {code}{_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return "\n".join([". The end of its log:", *lines]) if lines else "; its log is empty"
