"""Run the jobs of a test's database in this process, with a real worker, until nothing is left to run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from howdah.config import Config
from howdah.database import connected
from howdah.errors import HowdahError
from howdah.service import Service
from howdah.testing.choice import choose, modules_of, with_resources

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from howdah.registry import Registry
    from howdah.testing.choice import Handlers
    from howdah.testing.databases import Database

#: Slots of each queue, and the seconds between two looks at whether all is done.
SLOTS, LOOK = 10, 0.01


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that ended. `error` is the last attempt's, with `type`, `message` and perhaps `stack`."""

    id: int
    kind: str
    queue: str
    state: str
    attempt: int
    subject: str | None
    payload: dict[str, Any] = field(repr=False)
    result: Any
    error: dict[str, Any] | None
    cancel_reason: str | None

    def __repr__(self) -> str:
        said = self.cancel_reason
        if self.error is not None and self.state == "dead":
            said = f"{self.error.get('type')}: {self.error.get('message')}"
        return f"<{self.kind} {self.id} {self.state} at attempt {self.attempt}{f': {said}' if said else ''}>"


@dataclass(frozen=True, slots=True)
class Run:
    """What happened: the jobs that ended, in order of time, how many attempts were made, and how many jobs are left for later."""

    ended: list[EndedJob]
    processed: int
    left: int

    @property
    def completed(self) -> list[EndedJob]:
        """The jobs that went well."""
        return [job for job in self.ended if job.state == "completed"]

    @property
    def dead(self) -> list[EndedJob]:
        """The jobs that used up their attempts, or were hopeless."""
        return [job for job in self.ended if job.state == "dead"]

    @property
    def cancelled(self) -> list[EndedJob]:
        """The jobs that nobody wanted any more."""
        return [job for job in self.ended if job.state == "cancelled"]

    def check(self) -> Run:
        """Fail the test if a job is dead, with its error and where it came from; else give the run itself."""
        __tracebackhide__ = True
        if self.dead:
            raise AssertionError("\n".join(f"{job!r}\n{_stack(job)}".rstrip() for job in self.dead))
        return self


async def run_until_empty(
    database: Database | str,
    handlers: Handlers = None,
    *,
    queues: Sequence[str] | None = None,
    skip_delays: bool = False,
    resources: Mapping[str, Any] | None = None,
    timeout: float = 30.0,  # noqa: ASYNC109  # a test's patience; what is cut short is given back first
) -> Run:
    """Run jobs until none is left that could run now, and tell what came of them.

    A real worker does it on this loop: it claims, runs handlers, retries and acks as `howdah run` does. It opens no port and
    leaves the process's signals alone.

    Args:
        database: the fixture `howdah_database`, or an address.
        handlers: modules, names of modules or handler functions; all that have been imported if none are given. Jobs of
            other kinds are left alone.
        queues: only these; all if none are given.
        skip_delays: do not wait for times to come: what is scheduled, snoozed, coalesced or tried again runs now.
        resources: what handlers find in `job.resources`, in place of what the lifespans give, which are not entered then.
        timeout: seconds until the test fails with a list of what is left.

    """
    __tracebackhide__ = True
    url = database if isinstance(database, str) else database.url
    registry = choose(handlers)
    if resources is not None:
        registry = with_resources(registry, resources)
    async with connected(url, name="testing") as connection:
        began = await connection.fetchval("select clock_timestamp()")
        before = {
            row["id"]
            for row in await connection.fetch("select id from howdah.job_history where finished_at >= $1", began)
        }
        processed = 0
        try:
            async with asyncio.timeout(timeout):
                while served := await _queues_with_work(connection, registry, queues, skip_delays=skip_delays):
                    processed += await _live(url, registry, served, connection, skip_delays=skip_delays)
        except TimeoutError:
            raise AssertionError(f"not empty after {timeout:g} s; {await _describe(connection, registry)}") from None
        rows = await connection.fetch(_ENDED, began)
        left = await connection.fetchval("select count(*) from howdah.jobs j where j.kind = any ($1)", registry.kinds)
    return Run([EndedJob(**dict(row)) for row in rows if row["id"] not in before], processed, left)


async def _live(
    url: str, registry: Registry, queues: list[str], connection: asyncpg.Connection, *, skip_delays: bool
) -> int:
    """Let one worker live until its queues are empty; gives how many attempts it made."""
    config = Config(
        database_url=url,
        listen_database_url=url,
        pool_database_url=url,
        queues=dict.fromkeys(queues, SLOTS),
        concurrency=None,
        handlers=modules_of(registry),
        history_days=14,
        poll_interval=0.05,
        drain_timeout=5.0,
        lease_ttl=30.0,
    )
    service = Service(config, registry, guest=True)
    life = asyncio.create_task(service.run())
    try:
        ready = asyncio.create_task(service.ready())
        await asyncio.wait({life, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        while not life.done():
            if await service.is_empty() and not (skip_delays and await _pull_forward(connection, registry, queues)):
                service.stop("empty")
                break
            await asyncio.wait({life}, timeout=LOOK)
    except asyncio.CancelledError:
        for _ in range(2):  # the second time means at once
            service.stop("the test's patience is at its end")
        await life
        raise
    report = await life
    if report.failed:
        raise HowdahError("the worker stopped because something in it failed: see the log") from report.error
    return report.processed


async def _queues_with_work(
    connection: asyncpg.Connection, registry: Registry, queues: Sequence[str] | None, *, skip_delays: bool
) -> list[str]:
    rows = await connection.fetch(_QUEUES, registry.kinds, skip_delays)
    return [row["queue"] for row in rows if queues is None or row["queue"] in queues]


async def _pull_forward(connection: asyncpg.Connection, registry: Registry, queues: list[str]) -> bool:
    """Make due what waits for a time; tells whether there was anything."""
    moved = await connection.fetchval(_PULL_JOBS, registry.kinds, queues)
    events = await connection.fetchval(_PULL_EVENTS, registry.kinds)
    return bool(moved or events)


async def _describe(connection: asyncpg.Connection, registry: Registry) -> str:
    rows = await connection.fetch(
        "select kind, id, state, queue, attempt, errors -> -1 ->> 'message' as error,"
        " exists (select from howdah.queues q where q.name = queue and q.paused_at is not null) as paused"
        " from howdah.jobs where kind = any ($1) order by id limit 20",
        registry.kinds,
    )
    lines = [
        f"{row['kind']} {row['id']} {row['state']} in queue {row['queue']}{' (paused)' if row['paused'] else ''}"
        f" at attempt {row['attempt']}{': ' + row['error'] if row['error'] else ''}"
        for row in rows
    ]
    return "left are:\n  " + "\n  ".join(lines) if lines else "yet no job is left"


def _stack(job: EndedJob) -> str:
    stack: str = (job.error or {}).get("stack", "")
    return stack


_ENDED = """
select id, kind, queue, state, attempt, subject, payload, result, errors -> -1 as error, cancel_reason
from howdah.job_history where finished_at >= $1 order by finished_at, id
"""

# A coalesced event without a queue goes to its kind's. Events and jobs in the future count only if nobody waits for their time.
_QUEUES = """
select distinct j.queue from howdah.jobs j
where j.kind = any ($1) and (j.due_at is null or j.due_at <= clock_timestamp() or ($2 and j.due_at < 'infinity'))
union
select coalesce(e.queue, k.queue, 'default') from howdah.events e left join howdah.kinds k on k.name = e.kind
where e.kind = any ($1) and ($2 or e.due_at <= clock_timestamp())
"""

_PULL_JOBS = """
select count(howdah.reschedule(j.id, clock_timestamp())) from howdah.jobs j
where j.kind = any ($1) and j.queue = any ($2) and j.lease is null and j.due_at > clock_timestamp() and j.due_at < 'infinity'
"""

_PULL_EVENTS = """
with pulled as (update howdah.events set due_at = clock_timestamp() where kind = any ($1) and due_at > clock_timestamp() returning 1)
select count(*), howdah.notify('howdah_control', 'due') from pulled having count(*) > 0
"""
