"""The session's worker process: started, told to drain, and what it writes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

from howdah.embedded.process import BoundProcess

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds for running jobs when the file was saved or the session ends; the rest goes back uncounted.
DRAIN = 1.5
#: How long after that a worker may take to leave, in seconds, before it is killed.
PATIENCE = 12.0
#: A worker that was killed holds up its jobs for so many seconds.
LEASE_TTL = 10

_STARTED = re.compile(r"^\S+ info +started .*\bworker=(\d+)")
_SETTLED = (
    "DATABASE_URL",
    "HOWDAH_DATABASE_URL",
    "HOWDAH_DATABASE_URL_FILE",
    "HOWDAH_LISTEN_DATABASE_URL",
    "HOWDAH_LISTEN_DATABASE_URL_FILE",
    "HOWDAH_POOL_DATABASE_URL",
    "HOWDAH_POOL_DATABASE_URL_FILE",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
)


class Worker:
    """One worker at a time. What it writes goes to a file, and from there, line by line, to whoever asks."""

    def __init__(self, file: Path, log: Path, url: str) -> None:
        self._file = file
        self._log = log
        self._url = url
        self._process: BoundProcess | None = None
        self._read_to = 0
        self._part = b""
        #: The worker's id, once it has said it.
        self.id: int | None = None
        #: What it said last that is no log line, such as why it cannot start.
        self.complaint = ""
        log.unlink(missing_ok=True)

    def start(self) -> None:
        """Start a worker; it ends with this process, whatever ends that."""
        self.id, self.complaint = None, ""
        command = [sys.executable, "-m", "howdah.devmode.child", str(self._file)]
        self._process = BoundProcess(command, log=self._log, environment=self._environment(), folder=os.getcwd())  # noqa: PTH109

    @property
    def runs(self) -> bool:
        """Tell whether there is a worker now."""
        return self._process is not None

    def left(self) -> int | None:
        """Give the exit code of a worker that left without being told to, once; None while it runs."""
        if self._process is None or (code := self._process.wait(0)) is None:
            return None
        self._process = None
        return code

    async def stop(self, hurry: asyncio.Event) -> None:
        """Let the worker drain; with `hurry` it gives everything back at once. Returns when it is gone."""
        process, hurried = self._process, False
        if process is None:
            return
        process.signal(signal.SIGINT)
        deadline = asyncio.get_running_loop().time() + DRAIN + PATIENCE
        while process.wait(0) is None:
            if hurry.is_set() and not hurried:
                process.signal(signal.SIGQUIT)
                hurried, deadline = True, min(deadline, asyncio.get_running_loop().time() + PATIENCE / 2)
            if asyncio.get_running_loop().time() > deadline:
                process.kill()
                break
            await asyncio.sleep(0.02)
        self._process = None

    def kill(self) -> None:
        """End the worker at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def lines(self) -> list[str]:
        """Give what it has written since the last call; a line without its end waits for it."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._read_to)
                new = log.read()
        except FileNotFoundError:
            return []
        self._read_to += len(new)
        *whole, self._part = (self._part + new).split(b"\n")
        lines = [line.decode("utf-8", "replace") for line in whole]
        for line in lines:
            if match := _STARTED.match(line):
                self.id = int(match[1])
            elif line.startswith("howdah: "):
                self.complaint = line.removeprefix("howdah: ")
        return lines

    def _environment(self) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if name not in _SETTLED}
        level = given.get("HOWDAH_LOG_LEVEL", "info").lower()
        return {
            "HOWDAH_DRAIN_TIMEOUT": str(DRAIN),
            "HOWDAH_LEASE_TTL": str(LEASE_TTL),
            "HOWDAH_HTTP_PORT": "0",
            **given,
            "HOWDAH_DATABASE_URL": self._url,
            "HOWDAH_LOG_FORMAT": "console",
            "HOWDAH_LOG_LEVEL": level if level == "debug" else "info",  # its start must be said
            "PYTHONUNBUFFERED": "1",
            # A file that is saved twice in a second with the same size would be taken for its old bytecode.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
