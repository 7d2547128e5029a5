"""The workers, and a supervisor that starts again what died, as systemd does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from support.daemon import clean_environment

#: Seconds; a killed worker's jobs are taken back after so long.
TTL = 10
SLOTS, POOL = 100, 10
#: Connections that a worker has at most: the engine's, the handlers'.
MOST_CONNECTIONS = 10 + POOL
_RESTART, _LOOK = 0.5, 0.1


@dataclass
class Life:
    """One process of a worker's, from its start to its end."""

    worker: int
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    #: The fault that ended it; '' while it lives, and if nobody ordered its end.
    ended_by: str = ""
    code: int | None = None


@dataclass
class Worker:
    """One place in the fleet. `elder`: it is frozen and cut off like the others, but never killed."""

    number: int
    url: str
    elder: bool
    lives: list[Life] = field(default_factory=list)

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def name(self) -> str:
        return f"worker {self.number}"


class Fleet:
    """Keeps its workers alive."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        self._folder = folder
        self.workers = [Worker(n, url, elder=n == 1) for n, url in enumerate(urls, start=1)]
        self._keep = False
        #: Workers that left and nobody had ordered it.
        self.unasked: list[str] = []

    def start(self) -> None:
        for worker in self.workers:
            self._start(worker)
        self._keep = True

    async def run(self) -> None:
        """Start again what has died, until cancelled."""
        while True:
            for worker in self.workers:
                life = worker.life
                if life.process.poll() is not None and self._keep:
                    self._note_end(worker)
                    await asyncio.sleep(_RESTART)
                    self._start(worker)
            await asyncio.sleep(_LOOK)

    def end(self, worker: Worker, how: signal.Signals) -> Life:
        """Kill it, or tell it to leave; the supervisor starts it again."""
        life = worker.life
        life.ended_by = how.name
        life.process.send_signal(how)
        return life

    async def stop(self) -> None:
        """Let all of them drain and leave."""
        self._keep = False
        for worker in self.workers:
            self.end(worker, signal.SIGTERM)
        deadline = monotonic() + 40
        while any(worker.life.process.poll() is None for worker in self.workers) and monotonic() < deadline:
            await asyncio.sleep(_LOOK)
        for worker in self.workers:
            self._note_end(worker)

    def reap(self) -> None:
        """Leave no process behind, whatever happened."""
        self._keep = False
        for worker in self.workers:
            for life in worker.lives[-1:]:
                with suppress(ProcessLookupError):
                    os.killpg(life.process.pid, signal.SIGKILL)
                life.process.wait()

    def events(self) -> dict[str, Counter[str]]:
        """Count what all lives have logged at WARNING and ERROR."""
        found: dict[str, Counter[str]] = {"warning": Counter(), "error": Counter(), "": Counter()}
        for worker in self.workers:
            for life in worker.lives:
                for text in life.log.read_text(encoding="utf-8", errors="replace").splitlines():
                    with suppress(ValueError):
                        line = json.loads(text)
                        if line.get("level") in found:
                            found[line["level"]][line["event"]] += 1
                        continue
                    found[""][text[:120]] += 1
        return found

    def _note_end(self, worker: Worker) -> None:
        life = worker.life
        life.code = life.process.poll()
        expected = {"": None, "SIGKILL": -signal.SIGKILL, "SIGTERM": 0}[life.ended_by]
        if life.code != expected:
            self.unasked.append(
                f"{worker.name}, life {life.number}: exit {life.code} after {life.ended_by or 'no order'}: {life.log}"
            )

    def _start(self, worker: Worker) -> None:
        number = len(worker.lives) + 1
        log = self._folder / f"worker{worker.number}-{number}.log"
        settings = {
            "HOWDAH_DATABASE_URL": worker.url,
            "HOWDAH_HANDLERS": "soak.kinds",
            "HOWDAH_QUEUES": f"default:{SLOTS}",
            "HOWDAH_POOL_SIZE": str(POOL),
            "HOWDAH_LEASE_TTL": str(TTL),
            "HOWDAH_LOG_FORMAT": "json",
            "SOAK_STARTS": str(self._folder / f"worker{worker.number}-{number}.starts"),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "howdah", "run"],
                cwd=self._folder,
                env=clean_environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        worker.lives.append(Life(worker.number, number, process, log, monotonic()))
