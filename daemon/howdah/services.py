"""What a running job may ask of its worker."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

from howdah.chaining import link
from howdah.jsontext import encode
from howdah.loans import Loans
from howdah.steps import Steps
from howdah.tracecontext import traced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from howdah.job import Job
    from howdah.store import Store


class WorkerServices:
    """The services for handlers on the loop and in threads. To be made on the loop."""

    def __init__(
        self, *, steps: Store, connection: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
    ) -> None:
        self._steps = steps
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        # A handler may ask from several threads at once.
        self._one_by_one = threading.Lock()

    def report(self, job: Job[Any], progress: Any) -> None:
        """Keep a job's newest progress until the reporter takes it. From any thread: it is one assignment."""
        job.progress = encode(progress)

    def step(self, job: Job[Any], name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do a step of a job; from another thread than the loop's it blocks that one."""
        with self._one_by_one:
            if job.steps is None:
                job.steps = Steps(job, self._steps, self._loop)
        steps = cast("Steps", job.steps)
        run = steps.run if threading.get_ident() == self._loop_thread else steps.run_in_thread
        return run(name, function, arguments)

    def enqueue(self, job: Job[Any], kind: str, payload: Any, options: Mapping[str, Any]) -> None:
        """Keep a job to be enqueued with the ack of this one. From any thread."""
        asked = link(kind, payload, traced(options))
        with self._one_by_one:
            job.chained = [*(job.chained or ()), asked]

    def connection(self, job: Job[Any]) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of the handlers' pool, for as long as the attempt lasts at most. On the loop."""
        if job.loans is None:
            job.loans = Loans(job)
        return cast("Loans", job.loans).lend(self._connection())
