"""Handlers in processes of their own: for work that keeps a CPU busy, and killed for real at its timeout."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pebble import ProcessExpired, ProcessPool

from howdah import logs
from howdah.chaining import link
from howdah.errors import HandlerTimeoutError, HowdahError
from howdah.job import Cancel, Discard, Job, Snooze, current_job, job_fields
from howdah.jsontext import encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from howdah.logs import LogStyle
    from howdah.registry import Handler, Registry

log = logging.getLogger("howdah.processes")

#: What a process handler needs to know of its job: everything plain.
_FACTS = (
    "id",
    "kind",
    "queue",
    "attempt",
    "max_attempts",
    "priority",
    "subject",
    "created_at",
    "raw_payload",
    "raw_headers",
)


class Processes:
    """A pool of processes, made when the first process handler is called."""

    def __init__(
        self, modules: Sequence[str], *, log_style: LogStyle = "json", log_level: str = "info", size: int | None = None
    ) -> None:
        self._log_setup = (log_style, log_level)
        self._modules = tuple(modules)
        self._size = size or os.cpu_count() or 1
        self._pool: ProcessPool | None = None
        self._progress: dict[Path, Job[Any]] = {}
        self._folder: Path | None = None

    async def call(self, job: Job[Any], handler: Handler) -> Any:
        """Run a handler in a process and give what it returned.

        Raises what it raised, HandlerTimeoutError when it was killed at its timeout, HowdahError when its process died.
        """
        pool = self._ready_pool()
        timeout = job.timeout or handler.timeout
        facts = {name: getattr(job, name) for name in _FACTS}
        progress = self._note_for(job)
        future = pool.schedule(
            _call_in_child, args=(self._modules, facts, str(progress), logs.worker()), timeout=timeout
        )
        try:
            value, job.chained = await asyncio.wrap_future(future)
        except TimeoutError:
            raise HandlerTimeoutError(job.kind, timeout) from None
        except ProcessExpired as error:
            raise HowdahError(f"the process of {job.kind} died with code {error.exitcode}") from None
        except BrokenProcessPool as error:
            # A process died between two jobs, and nobody can say beside whose. The next call makes a new pool.
            raise HowdahError(f"a process died beside {job.kind}: {error}") from None
        finally:
            # Also of one that was killed: what it reported before is there.
            _collect(progress, job)
            del self._progress[progress]
        return value

    def collect_progress(self) -> None:
        """Give every running job the newest progress that its process has left for it."""
        for progress, job in self._progress.items():
            _collect(progress, job)

    def _note_for(self, job: Job[Any]) -> Path:
        """Give the file in which a job's process leaves its progress, the newest in the place of the one before.

        A file and no pipe: a writer need never wait for us, and one that is killed half way spoils nothing.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="howdah-progress-"))
        progress = self._folder / f"{job.id}.{job.lease}"
        self._progress[progress] = job
        return progress

    def _ready_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:
            log.warning("the processes are made anew: one died out of turn")
            self.close()
            self._pool = None
        if self._pool is None:
            # forkserver: a child must not inherit our threads' locks, nor our connections.
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPool(
                max_workers=self._size,
                context=context,
                initializer=_prepare_child,
                initargs=(os.getpid(), self._modules, *self._log_setup),
            )
        return self._pool

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _collect(progress: Path, job: Job[Any]) -> None:
    # Taken away before it is read: the child may put the next one in its place meanwhile.
    taken = progress.with_suffix(".taken")
    try:
        progress.replace(taken)
        job.progress = taken.read_bytes()
        taken.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("progress of a process is lost", extra={**job_fields(job), "error": str(error)})


class _ChildServices:
    """What a job may ask for in a process: to leave its progress."""

    def __init__(self, progress: str) -> None:
        self._progress = Path(progress)
        self._one_by_one = threading.Lock()

    def report(self, job: Job[Any], progress: Any) -> None:
        """Leave the newest progress for the daemon to find."""
        text = encode(progress)
        with self._one_by_one:
            draft = self._progress.with_suffix(".draft")
            try:
                draft.write_bytes(text)
                draft.replace(self._progress)
            except OSError as error:
                log.warning("progress cannot be left", extra={**job_fields(job), "error": str(error)})

    def step(self, *_asked: Any, **_named: Any) -> Any:
        """Refuse: the fence is the daemon's."""
        raise _not_here("job.step")

    def enqueue(self, job: Job[Any], kind: str, payload: Any, options: Mapping[str, Any]) -> None:
        """Keep a job, to be enqueued when the daemon acks this one."""
        asked = link(kind, payload, options)
        with self._one_by_one:
            job.chained = [*(job.chained or ()), asked]

    def connection(self, _job: Job[Any]) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Refuse: the pool is the daemon's."""
        raise _not_here("job.connection")


class _NoResources(Mapping[str, Any]):
    """Refuses every look: what a lifespan holds belongs to the daemon's loop, and was never in this process."""

    def __getitem__(self, name: str) -> Any:
        raise _not_here("job.resources")

    def __iter__(self) -> Iterator[str]:
        raise _not_here("job.resources")

    def __len__(self) -> int:
        raise _not_here("job.resources")


def _not_here(what: str) -> HowdahError:
    return HowdahError(
        f"{what} is not there in a process handler, which shares nothing with its daemon: open what it needs in the handler"
    )


def _prepare_child(daemon: int, modules: Sequence[str], style: LogStyle, level: str) -> None:
    threading.Thread(target=_end_with, args=(daemon,), daemon=True).start()
    logs.configure(style=style, level=level)
    # Ctrl-C reaches the whole group; what a child does about it is its parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before the first job, whose time it would cost. A failure here comes again, and is told, with the job.
    with suppress(Exception):
        _load(modules)


def _end_with(daemon: int) -> None:
    """End this process when the daemon is gone: one that is killed must leave nobody behind at work on its jobs.

    The parent is no sign: it is the fork server, which lives for as long as a busy child holds its pipe.
    """
    with suppress(OSError):
        while True:
            os.kill(daemon, 0)
            time.sleep(1)
    os._exit(1)


def _load(modules: Sequence[str]) -> Registry:
    from howdah.registry import load  # noqa: PLC0415  # only the child imports the handlers here

    return load(modules)


def _call_in_child(
    modules: Sequence[str], facts: dict[str, Any], progress: str, worker: int | None
) -> tuple[Any, list[bytes] | None]:
    logs.set_worker(worker)
    handler = _load(modules).get(facts["kind"])
    if handler is None:
        raise HowdahError(f"no handler for {facts['kind']} in a child process")
    job: Job[Any] = Job()
    for name, value in facts.items():
        setattr(job, name, value)
    job.payload = handler.validate(job.raw_payload)
    job.headers = orjson.loads(job.raw_headers) if job.raw_headers is not None else {}
    job.cancelled = job.timed_out = job.interrupted = False
    job.resources = _NoResources()
    job.services = _ChildServices(progress)
    job.chained = None
    current_job.set(job)
    value = handler.function(job)
    # Encoded here, in the child: it may be large, and need not be picklable.
    kept = value if value is None or isinstance(value, Snooze | Discard | Cancel) else encode(value)
    return kept, job.chained
