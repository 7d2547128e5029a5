"""Real daemons for tests: processes of their own, with a handlers module of the test's, their logs and their port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from support.eventually import aeventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Json = dict[str, Any]

#: What handlers modules begin with.
PRELUDE = """\
from __future__ import annotations
import asyncio, contextvars, logging, os, signal, sys, threading, time
from datetime import timedelta
from pathlib import Path
from typing import Any
import asyncpg
from pydantic import BaseModel
from howdah import Cancel, Discard, Job, Snooze, handler, lifespan, on_error
"""

#: Handlers that many tests use: nothing, and one that writes when it ran, by the database's clock.
NOOP = """
@handler("work")
async def work(job: Job) -> dict[str, Any]:
    return {"echo": job.payload}
"""


class Daemon:
    """One `howdah run` in a working directory of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        url: str,
        handlers: str = NOOP,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        self.address = ""
        self.worker = 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "handlers.py").write_text(PRELUDE + textwrap.dedent(handlers), encoding="utf-8")
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "howdah", "run", *arguments],
                cwd=folder,
                env=clean_environment(HOWDAH_DATABASE_URL=url, **(environment or {})),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self, timeout: float = 20.0) -> Daemon:  # noqa: ASYNC109 - it is a test's patience
        """Wait until it has started and /readyz says 200."""

        async def is_ready() -> bool:
            if self.process.poll() is not None:
                return True
            started = self.log_events("started")
            if not started:
                return False
            self.address, self.worker = started[0]["address"], started[0]["worker"]
            return (await self.get("/readyz"))[0] == 200

        try:
            await aeventually(is_ready, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from error
        if self.process.returncode is not None:
            raise AssertionError(f"the daemon left with {self.process.returncode}:\n{self.output()}")
        return self

    # -- what it says

    def output(self) -> str:
        """Everything that it has written."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def logs(self) -> list[Json]:
        """The lines of the log that are JSON; what is not is given as {"event": "", "text": …}."""
        lines: list[Json] = []
        for text in self.output().split("\n")[:-1]:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            lines.append(line if isinstance(line, dict) else {"event": "", "text": text})
        return lines

    def log_events(self, event: str) -> list[Json]:
        """The log lines of one event."""
        return [line for line in self.logs() if line["event"] == event]

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Ask its port; gives status and body. Raises what aiohttp raises."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(self.address + path, headers=headers) as response,
        ):
            return response.status, await response.text()

    async def metrics(self) -> dict[str, float]:
        """What /metrics tells: {'howdah_slots{queue="default"}': 100.0, …}."""
        _, text = await self.get("/metrics")
        return parse_metrics(text)

    async def metric(self, name: str) -> float:
        """One sample, 0 when it is not there (yet)."""
        return (await self.metrics()).get(name, 0.0)

    # -- what is done to it

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone."""
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: drain."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: a crash. Its children go when they notice."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it lives, and does nothing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def wait(self, timeout: float = 20.0) -> int:  # noqa: ASYNC109 - it is a test's patience
        """Wait until it has left, and give its exit code."""
        try:
            await aeventually(lambda: self.process.poll() is not None, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from error
        return self.process.returncode

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        self.terminate()
        return await self.wait()

    def reap(self) -> None:
        """End it and its children, whatever state they are in."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment of a command: none of the developer's own settings, then `variables`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOWDAH_", "PG")) and name not in {"DATABASE_URL", "CREDENTIALS_DIRECTORY"}
    }
    defaults = {"HOWDAH_HTTP_PORT": "0", "PYTHONUNBUFFERED": "1"}
    return inherited | defaults | variables


def howdah(*arguments: str, folder: Path, timeout: float = 30, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command `howdah` to its end, in a folder, with nothing but these variables set."""
    return subprocess.run(
        [sys.executable, "-m", "howdah", *arguments],
        cwd=folder,
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_handlers(folder: Path, text: str = NOOP) -> None:
    """Write a handlers module into a working directory."""
    (folder / "handlers.py").write_text(PRELUDE + textwrap.dedent(text), encoding="utf-8")


def parse_metrics(text: str) -> dict[str, float]:
    """Give every sample of an exposition under its name and labels, as they stand in the text."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples
