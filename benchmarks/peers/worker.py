"""One process of a peer, as the harness sees it: started, listened to, and ended by its id."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.install import Installed

_PR_SET_PDEATHSIG = 1


class PeerError(Exception):
    """A peer did not do what was asked; the message says what it said."""


class Worker:
    """A running process and the words that it has said."""

    def __init__(self, process: asyncio.subprocess.Process, complaints: Path) -> None:
        self._process = process
        self._complaints = complaints
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ear = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, installed: Installed, verb: str, task: dict[str, Any]) -> Self:
        """Start it."""
        descriptor, complaints = tempfile.mkstemp(prefix="peers-", suffix=".stderr")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOWDAH_", "PG"))}
        with os.fdopen(descriptor, "wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *installed.command,
                verb,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd="/",  # a folder that has no modules by chance
                env={**inherited, **installed.environment, "PEERS_TASK": json.dumps(task)},
                start_new_session=True,
                preexec_fn=_die_with_us,
                limit=2**27,  # a million waits in a line
            )
        return cls(process, Path(complaints))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def word(self, event: str, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109 - a measurement's patience
        """Wait for a word; gives its facts. Raises PeerError when it ends or says nothing in time."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    said = await self._said.get()
                    if said["event"] == event:
                        return said
                    if said["event"] == "gone":
                        raise PeerError(f"ended before it said {event!r}: {self.complaint()}")
        except TimeoutError:
            raise PeerError(f"did not say {event!r} within {timeout:.0f} s: {self.complaint()}") from None

    def complaint(self) -> str:
        """Give the last that it wrote on standard error."""
        text = self._complaints.read_text(encoding="utf-8", errors="replace").strip()
        return " | ".join(text.splitlines()[-4:])[-600:] or "it wrote nothing"

    def used(self) -> tuple[float, float]:
        """Give the seconds of CPU and the megabytes of memory of it and its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def leave(self, timeout: float) -> None:  # noqa: ASYNC109 - a measurement's patience
        """Ask it to finish what it has and go; it is killed if it takes too long."""
        with suppress(TimeoutError, ProcessLookupError):
            self._process.terminate()
            await asyncio.wait_for(self._process.wait(), timeout)

    async def end(self) -> None:
        """Kill it and its children, and wait until it is gone."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await self._ear
        self._complaints.unlink(missing_ok=True)

    async def _listen(self) -> None:
        if self._process.stdout is None:
            raise AssertionError("it was started with a pipe")
        async for line in self._process.stdout:
            if line.startswith(b"{"):
                with suppress(ValueError):
                    self._said.put_nowait(json.loads(line))
        await self._process.wait()
        self._said.put_nowait({"event": "gone"})


@asynccontextmanager
async def working(installed: Installed, task: dict[str, Any], verb: str = "work") -> AsyncIterator[Worker]:
    """Run a process for as long as the block lasts."""
    worker = await Worker.start(installed, verb, task)
    try:
        yield worker
    finally:
        await worker.end()


async def run_to_end(installed: Installed, task: dict[str, Any], verb: str, timeout: float = 300) -> None:  # noqa: ASYNC109
    """Run a process until it says that it has done what was asked."""
    async with working(installed, task, verb) as worker:
        await worker.word("ok", timeout)


def _die_with_us() -> None:
    """Let the kernel end the child when the harness dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
