"""A session's life: database, worker, again on every save, and everything gone at the end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from time import strftime
from typing import TYPE_CHECKING, Any

from howdah.database import connected
from howdah.devmode import view
from howdah.devmode.facts import Reader
from howdah.devmode.record import Record
from howdah.devmode.screen import open_screen
from howdah.devmode.sources import saves, syntax_error
from howdah.devmode.worker import Worker
from howdah.embedded import EmbeddedPostgres
from howdah.errors import HowdahError, MigrationError
from howdah.migrate import migrate

if TYPE_CHECKING:
    from howdah.devmode.screen import Screen

#: Seconds between two pictures, and until a worker that left on its own is started again.
TICK, AGAIN = 0.1, 1.0
MENDABLE = 78
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session:
    """One `howdah dev`. With `database_url` None the database is our own, in the data directory."""

    def __init__(self, file: Path, data_dir: Path, database_url: str | None) -> None:
        self._file = file
        self._data_dir = data_dir
        self._url = database_url
        self._screen: Screen
        self._seen = view.Session(file=file.name, log=deque(maxlen=200))

    def run(self) -> None:
        """Live until Ctrl-C, SIGTERM or the terminal's end. Raises HowdahError when the database cannot be had."""
        # The server is started and stopped in the main thread and outside of the loop: it ends with the thread that started it.
        with ExitStack() as stack:
            record = stack.enter_context(Record(self._data_dir))
            url = self._url
            if url is None:
                folder = self._data_dir / "postgres"
                self._say(f"PostgreSQL in {_shown(folder)}" + ("" if folder.exists() else ", made now"))
                url = stack.enter_context(EmbeddedPostgres(folder)).url()
            self._say_first = f"worker's log in {_shown(self._data_dir / 'worker.log')}"
            try:
                asyncio.run(self._live(url, record))
            finally:
                # From here on the server stops: an impatient Ctrl-C must not leave it half way.
                for number in _ENDS:
                    signal.signal(number, signal.SIG_IGN)
        self._say("stopped")

    async def _live(self, url: str, record: Record) -> None:
        async with connected(url, name="dev migrate") as connection:
            try:
                await migrate(connection)
            except MigrationError as error:
                if self._url is not None:
                    raise
                raise HowdahError(
                    f"{error}\nThe jobs in {_shown(self._data_dir)} are another release's: delete it to begin anew"
                ) from None
        record.write(url)
        self._say(self._say_first)
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._saved: asyncio.Queue[list[Path]] = asyncio.Queue()
        self._worker = Worker(self._file, self._data_dir / "worker.log", url)
        self._reader = Reader(url)
        self._seen.facts = self._reader.facts
        loop = asyncio.get_running_loop()
        for number in _ENDS:
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            with open_screen() as self._screen:
                driving = [loop.create_task(run) for run in (self._watch(), self._drive())]
                showing = [loop.create_task(run) for run in (self._reader.run(), self._show())]
                stop = loop.create_task(self._stop.wait())
                done, _ = await asyncio.wait({*driving, *showing, stop}, return_when=asyncio.FIRST_COMPLETED)
                await _cancel([*driving, stop])
                self._phase("draining")
                await self._worker.stop(self._hurry)
                await _cancel(showing)
                self._draw()
                for task in done - {stop}:
                    task.result()
        finally:
            self._worker.kill()

    # -- the worker

    async def _drive(self) -> None:
        """Start the worker, and again after every save that can be read."""
        self._begin([self._file])
        while True:
            try:
                saved = await asyncio.wait_for(self._saved.get(), TICK)
            except TimeoutError:
                await self._look_after()
                continue
            while not self._saved.empty():
                saved += self._saved.get_nowait()
            await self._change(saved)

    def _begin(self, paths: list[Path]) -> None:
        if error := syntax_error(paths):
            self._trouble(error, "waits for the next save")
            return
        self._seen.problem = None
        self._phase("starting")
        self._worker.start()

    async def _change(self, saved: list[Path]) -> None:
        """Exchange the worker for one with the new code; code that cannot be read changes nothing."""
        names = ", ".join(sorted({path.name for path in saved}))
        if not self._file.exists():
            self._trouble(f"{self._file.name} is gone", "waits for it")
            return
        if error := syntax_error([path for path in saved if path.exists()]):
            if self._worker.runs:
                self._trouble(error, "the code before it runs on", ready=True)
            else:
                self._trouble(error, "waits for the next save")
            return
        self._phase(f"{names} was saved, draining")
        await self._worker.stop(self._hurry)
        self._begin([self._file])

    async def _look_after(self) -> None:
        """See how the worker is: one that cannot start waits for a save, one that died is started again."""
        if (code := self._worker.left()) is not None:
            self._draw()
            if code == MENDABLE:
                self._trouble(self._worker.complaint or "the worker does not start", "waits for the next save")
            else:
                said = f"exit code {code}" if code >= 0 else f"signal {-code}"
                why = self._worker.complaint
                self._trouble(f"the worker died: {said}{f': {why}' if why else ''}", "starts again")
                await asyncio.sleep(AGAIN)
                self._begin([self._file])
        elif self._worker.id is not None and self._worker.id != self._reader.worker:
            self._reader.worker = self._worker.id
            self._phase(f"ready since {strftime('%H:%M:%S')}", ready=True)

    # -- what is seen

    async def _watch(self) -> None:
        async for saved in saves(self._file, self._stop):
            self._saved.put_nowait(saved)

    async def _show(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(TICK)

    def _draw(self) -> None:
        logged = self._worker.lines()
        self._seen.log.extend(logged)
        ended = self._reader.new[:]
        self._reader.new.clear()
        self._screen.show(self._seen, logged, ended)

    def _phase(self, phase: str, *, ready: bool = False) -> None:
        self._seen.phase, self._seen.ready = phase, ready
        self._screen.say(f"{self._seen.file}: {phase}")

    def _trouble(self, problem: str, phase: str, *, ready: bool = False) -> None:
        self._seen.problem = problem.replace(f"{self._file.parent}/", "")
        self._screen.say(f"error: {self._seen.problem}")
        self._phase(phase, ready=ready)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone
            sys.stdout.write(f"dev: {text}\n")
            sys.stdout.flush()

    # -- the end

    def _told_to_stop(self) -> None:
        """Stop; told again, do not wait for running jobs."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
