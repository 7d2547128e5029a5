"""Wait for the ends of jobs: told by the engine where LISTEN works, found by polling in any case.

All waits of a client share one connection for looking and one for listening. Each wait is looked at in 2 ms, 3 ms, 4.5 ms and so
on up to a second; one look asks for all that are due, and those that will soon be.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.errors import DatabaseUnavailableError, HowdahError, RefusedError
from howdah.jobstatus import JobStatus
from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from howdah.database import Line

log = logging.getLogger("howdah.waiting")

CONTROL = "howdah_control"
FIRST, LAST, GROWTH = 0.002, 1.0, 1.5
#: For how many seconds the engine is asked to tell, and after how many it is asked anew.
WATCHED, RENEWED = 90.0, 30.0
#: A listening connection that is silent for so long is asked whether it lives.
SILENCE, ANSWER = 30.0, 5.0


class _Wait:
    """Those who wait for one job."""

    __slots__ = ("futures", "look_at", "pause", "watch_at")

    def __init__(self) -> None:
        self.futures: set[asyncio.Future[JobStatus]] = set()
        self.look_at = 0.0
        self.pause = FIRST
        self.watch_at = 0.0


class Waits:
    """All waits of one client; belongs to the loop of the first."""

    def __init__(self, *, line: Line, ear: Line) -> None:
        self._line = line
        self._ear = ear
        self._name = secrets.token_hex(8)
        self._waits: dict[int, _Wait] = {}
        self._changed = asyncio.Event()
        self._hearing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def wait(self, job_id: int) -> JobStatus:
        """Wait until a job has ended, however often the database goes away. Raises RefusedError JB007 if there is none."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._look_on()), asyncio.create_task(self._listen_on())]
        future: asyncio.Future[JobStatus] = asyncio.get_running_loop().create_future()
        wait = self._waits.setdefault(job_id, _Wait())
        wait.futures.add(future)
        wait.look_at = 0.0
        self._changed.set()
        try:
            return await future
        finally:
            wait.futures.discard(future)
            if not wait.futures and self._waits.get(job_id) is wait:
                del self._waits[job_id]

    async def close(self) -> None:
        """End both tasks; whoever still waits is told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(HowdahError("the client was closed while it waited for this job"))
        await self._line.close()
        await self._ear.close()

    # -- looking

    async def _look_on(self) -> None:
        while True:
            self._changed.clear()
            now = monotonic()
            due = [job for job, wait in self._waits.items() if wait.look_at <= now + wait.pause / 2]
            if any(self._waits[job].look_at <= now for job in due):
                try:
                    await self._look(due)
                except DatabaseUnavailableError as error:
                    log.warning("the database went away, waiting goes on", extra={"error": str(error)})
                except Exception as error:
                    self._fail(error)  # a wrong password, a missing schema: no waiting heals it
                # However many waits begin one after another, there are at most 500 looks a second.
                await asyncio.sleep(FIRST)
            else:
                await _until(self._changed, min((wait.look_at - now for wait in self._waits.values()), default=None))

    async def _look(self, jobs: list[int]) -> None:
        began = monotonic()
        for job in jobs:
            # A word that comes from now on asks for another look.
            self._waits[job].look_at = float("inf")
        try:
            found = {row["id"]: row["ended"] for row in await self._line.fetch(SQL["look_for_ends"], jobs)}
            ended = [job for job, over in found.items() if over]
            for row in await self._line.fetch(SQL["look_up"], ended) if ended else ():
                self._tell(row["id"], JobStatus.of(row))
            for job in jobs:
                if job not in found:
                    self._tell(job, _no_job(job))
            await self._watch(job for job, over in found.items() if not over)
        finally:
            cost = monotonic() - began
            for job in jobs:
                if (wait := self._waits.get(job)) is not None and wait.look_at > began:
                    wait.look_at = monotonic() + max(wait.pause, 4 * cost)
                    wait.pause = min(wait.pause * GROWTH, LAST)

    async def _watch(self, live: Iterable[int]) -> None:
        """Ask the engine to tell of these jobs' ends; the next look covers an end that came just before."""
        if not self._hearing:
            return
        now = monotonic()
        jobs = [job for job in live if (wait := self._waits.get(job)) is not None and wait.watch_at < now]
        if not jobs:
            return
        try:
            await self._line.fetch(SQL["watch"], jobs, self._name, WATCHED)
        except asyncpg.PostgresError as error:
            # One of them ended meanwhile, or this role may not ask: the looks go on.
            log.debug("the engine was not asked to tell", extra={"error": str(error)})
        for job in jobs:
            if (wait := self._waits.get(job)) is not None:
                wait.watch_at = now + RENEWED

    def _tell(self, job: int, news: JobStatus | Exception) -> None:
        wait = self._waits.pop(job, None)
        for future in wait.futures if wait is not None else ():
            if future.done():
                continue
            if isinstance(news, JobStatus):
                future.set_result(news)
            else:
                future.set_exception(news)

    def _fail(self, error: Exception) -> None:
        for job in list(self._waits):
            self._tell(job, error)

    # -- listening

    async def _listen_on(self) -> None:
        pause = 0.1
        while True:
            try:
                await self._listen()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, HowdahError) as error:
                if self._hearing:
                    pause = 0.1
                self._hearing = False
                log.info("hears of no ends, looks go on", extra={"error": str(error) or type(error).__name__})
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)

    async def _listen(self) -> None:
        """Listen on one connection until it fails; always raises."""
        connection = await self._ear.connection()
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        try:
            async with asyncio.timeout(ANSWER):
                await connection.add_listener(CONTROL, self._hear)
            self._hearing = True
            self._look_at_all()
            while not await _until(gone, SILENCE):
                async with asyncio.timeout(ANSWER):
                    await connection.execute("select")
            raise ConnectionError("the connection was closed")
        finally:
            self._ear.drop()

    def _hear(self, _connection: Any, _pid: int, _channel: str, word: Any) -> None:
        what, _, job = str(word).partition(" ")
        if what == "ended" and job.isdecimal() and (wait := self._waits.get(int(job))) is not None:
            wait.look_at = 0.0
            self._changed.set()

    def _look_at_all(self) -> None:
        """Look at every wait: what was told before now was told to nobody, and now the engine may be asked to tell."""
        for wait in self._waits.values():
            wait.look_at = 0.0
            wait.pause = FIRST
            wait.watch_at = 0.0
        self._changed.set()


async def poll(line: Line, sql: str, *arguments: Any) -> None:
    """Ask until the statement's only value is true: after 2 ms, 3 ms and so on up to a second, through any outage."""
    pause = FIRST
    while True:
        with suppress(DatabaseUnavailableError):
            rows = await line.fetch(sql, *arguments)
            if rows[0][0]:
                return
        await asyncio.sleep(pause)
        pause = min(pause * GROWTH, LAST)


async def within(timeout: float | None, answer: Coroutine[Any, Any, Any], what: str) -> Any:  # noqa: ASYNC109
    """Await an answer for so many seconds at most. Raises TimeoutError that says what did not come."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"{what} within {timeout:g} s") from None
        raise


async def _until(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event for so many seconds (None: for ever), and tell whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _no_job(job: int) -> RefusedError:
    return RefusedError(
        "JB007", f"howdah: there is no job {job}", "it is not committed yet, or its history has been dropped"
    )
