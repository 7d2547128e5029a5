"""Work that keeps a CPU busy, or reads what strangers made, in processes that may be killed: nothing of it can hurt the worker."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from howdah import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")

MEGABYTE = 1024 * 1024
#: At least two, so that one slow file does not hold up all others; each stays, and what it has imported stays with it.
SIZE = min(max(os.cpu_count() or 1, 2), 8)
#: Files that are held at once, from their fetch on, and how long one waits for a seat among them, in seconds.
SEATS, PATIENCE = 8, 10.0

_OURS = ("HOWDAH_", "APP_", "DATABASE_", "PG", "AWS_")


class SubprocessError(Exception):
    """The function did not come to its end. The message is for people, and begins in lower case: "the file …" goes before it."""


class TooLongError(SubprocessError):
    """It took longer than it may, and was killed."""


class TooLargeError(SubprocessError):
    """It needed more memory than it may."""


class CrashedError(SubprocessError):
    """Its process died: a library crashed, or the system took the memory back."""


class NoSeatError(Exception):
    """So many files are in hand that there is no room for another: return Snooze(error.delay)."""

    delay = 5.0  # seconds


class Subprocesses:
    """A few processes that wait for work, made when the first comes. Functions and what they are given and give must be picklable."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._pool: ProcessPool | None = None
        self._seats = asyncio.Semaphore(SEATS)

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[None]:
        """Hold a seat, so that a worker with a hundred slots does not hold a hundred files. Raises NoSeatError after a while."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._seats.acquire()
        except TimeoutError:
            raise NoSeatError("too many files are in hand") from None
        try:
            yield
        finally:
            self._seats.release()

    async def call(
        self,
        function: Callable[..., T],
        *arguments: Any,
        seconds: float = 60.0,
        megabytes: int = 1024,
    ) -> T:
        """Call a function of a module, and give what it gives; what it raises is raised. The process is killed if we are cancelled.

        Raises TooLongError when it runs for longer than `seconds` (waiting for a free process does not count), TooLargeError when it
        needs `megabytes` more than its process had before, CrashedError.
        """
        future = self._ready_pool().schedule(_call, args=(megabytes, function, arguments), timeout=seconds)
        try:
            value: T = await asyncio.wrap_future(future)
        except ProcessExpired as error:
            raise CrashedError(f"its process died with code {error.exitcode}") from None
        except BrokenProcessPool:
            raise CrashedError("its process died") from None
        except MemoryError:
            raise TooLargeError(f"it needs more than {megabytes} MB of memory") from None
        except TimeoutError:
            raise TooLongError(f"it takes longer than {seconds:g} seconds") from None
        return value

    def close(self) -> None:
        """Kill what runs."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join(timeout=2)

    def _ready_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:
            self.close()
            self._pool = None
        if self._pool is None:
            # forkserver: a child must inherit neither locks of our threads nor our connections.
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPool(
                max_workers=self._size, context=context, initializer=_prepare, initargs=(os.getpid(),)
            )
        return self._pool


@lifespan
async def subprocesses() -> AsyncIterator[Subprocesses]:
    """Keep processes for all handlers of a worker."""
    kept = Subprocesses()
    yield kept
    await asyncio.to_thread(kept.close)


def _prepare(worker: int) -> None:
    for name in list(os.environ):
        if name.startswith(_OURS):
            del os.environ[name]  # a library that is led astray by a file need not find passwords at hand
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker says what it means
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the processes themselves are what uses the CPUs
    threading.Thread(target=_end_with, args=(worker,), daemon=True).start()


def _end_with(worker: int) -> None:
    """End this process when the worker is gone. Its parent, the fork server, is no sign of that."""
    with suppress(OSError):
        while True:
            os.kill(worker, 0)
            time.sleep(1)
    os._exit(1)


def _call(megabytes: int, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    with _limited(megabytes):
        return function(*arguments)


@contextmanager
def _limited(megabytes: int) -> Iterator[None]:
    """Let this process have so much more memory than it has. Where the system tells no sizes (macOS), time alone is limited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    limit = pages * resource.getpagesize() + megabytes * MEGABYTE
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
