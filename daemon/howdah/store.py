"""Every statement that the daemon makes about jobs, each under the name of its file in `sql/queries`.

A Store speaks over one Line; whoever holds the Store decides the connection. Every method may raise
DatabaseUnavailableError, after which nobody knows whether it took effect; all of them are safe to repeat, except `claim`
and `claim_suspect`, whose unknown claim is given back with `disclaim`.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from howdah.job import Attempt, Job
from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from howdah.database import Line
    from howdah.schedules import Plan

#: The rank and id from which a look begins; ranks are 10 - priority.
START = (-1, 0)
LAST_RANK = 10
LAST_ID = 2**63 - 1


class Stretch(NamedTuple):
    """A piece of a queue in claim order: from just behind (rank, past) to id `end` in rank `upto`."""

    queue: str
    rank: int
    past: int
    upto: int
    end: int = LAST_ID


class Mark(NamedTuple):
    """A place in a queue in claim order."""

    queue: str
    rank: int
    id: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought: the jobs, and the last id that had been given out when it looked."""

    jobs: list[Job[Any]]
    newest: int


class LimitedClaim(NamedTuple):
    """What a claim of limited jobs brought, in how many seconds to look again, and whether queues without room had more."""

    jobs: list[Job[Any]]
    next_in: float | None
    more: bool


class Beat(NamedTuple):
    """What a beat tells: whether upkeep is this worker's, whether suspects wait, and whether there are signals."""

    leads: bool
    suspects: bool
    signals: bool


class Depth(NamedTuple):
    """How many jobs a queue has in a state, exactly or estimated, and the age of its oldest ready one in seconds."""

    queue: str
    state: str
    jobs: int
    exact: bool
    oldest: float | None


class DueSchedule(NamedTuple):
    """A schedule that wants to be looked at, as it stands under `version`; jitter in seconds, `now` by the database's clock."""

    name: str
    version: int
    cron: str
    time_zone: str
    missed: str
    jitter: float
    done_until: datetime
    problem: str | None
    now: datetime


class Fired(NamedTuple):
    """What came of firing: jobs made, slots passed over because a job lived, or what the database refused."""

    made: int
    overlapped: int
    refusal: str | None


class CensusRow(NamedTuple):
    """A sample of a figure of the whole database; `who` tells what it is of from another of the same labels."""

    name: str
    labels: list[str]
    value: float | None
    who: str | None


class Store:
    """The daemon's statements over one connection."""

    def __init__(self, line: Line) -> None:
        self._line = line

    # -- claims

    async def claim(
        self, worker: int, lease: int, kinds: Sequence[str], rooms: dict[str, int], stretches: Sequence[Stretch]
    ) -> Claim:
        """Take ready jobs: of each queue at most its room, looking along the stretches."""
        rows = await self._line.fetch(
            SQL["claim"],
            worker,
            lease,
            kinds,
            list(rooms),
            list(rooms.values()),
            [stretch.queue for stretch in stretches],
            [stretch.rank for stretch in stretches],
            [stretch.past for stretch in stretches],
            [stretch.upto for stretch in stretches],
            [stretch.end for stretch in stretches],
        )
        jobs = [job_of(row, lease) for row in rows if row[0] is not None]
        return Claim(jobs, rows[0]["newest"])

    async def find_behind(self, kinds: Sequence[str], most: int, marks: Sequence[Mark]) -> list[Mark]:
        """Find ready jobs that lie behind marks, of each queue at most so many, in claim order. Takes nothing."""
        queues, ranks, pasts = zip(*marks, strict=True)
        rows = await self._line.fetch(
            SQL["find_behind"], kinds, list(dict.fromkeys(queues)), most, queues, ranks, pasts
        )
        return [Mark(*row) for row in rows]

    async def claim_limited(self, worker: int, lease: int, kinds: Sequence[str], rooms: dict[str, int]) -> LimitedClaim:
        """Take limited jobs that may start now: of each queue at most its room."""
        rows = await self._line.fetch(SQL["claim_limited"], worker, lease, kinds, list(rooms), list(rooms.values()))
        jobs = [job_of(row, lease) for row in rows if row[0] is not None]
        return LimitedClaim(jobs, rows[0]["next_in"], rows[0]["more"])

    async def claim_suspect(
        self,
        worker: int,
        lease: int,
        kinds: Sequence[str],
        queues: Sequence[str],
        *,
        begun: bool,
        before: Job[Any] | None = None,
    ) -> Job[Any] | None:
        """Take one suspect, after the one before it has run; `begun`: its start is written with it, if it may run again; else before its handler is called.

        None: there is no other, or what came of the one before has to be written first.
        """
        last = (None, None) if before is None else (before.id, before.lease)
        rows = await self._line.fetch(SQL["claim_suspect"], worker, lease, kinds, queues, begun, *last)
        if not rows:
            return None
        job = job_of(rows[0], lease)
        job.told_start = begun and job.max_attempts > 1
        job.start_first = not job.told_start
        return job

    async def disclaim(self, worker: int, leases: Sequence[int]) -> int:
        """Give back what was claimed under leases whose replies were lost; gives the number of jobs."""
        return len(await self._line.fetch(SQL["disclaim"], worker, leases))

    async def say_asleep(self, worker: int) -> None:
        """Ask enqueue to notify from now on."""
        await self._line.fetch(SQL["say_asleep"], worker)

    async def say_awake(self, worker: int) -> None:
        """Spare enqueue the notification."""
        await self._line.fetch(SQL["say_awake"], worker)

    # -- attempts

    async def ack(self, attempts: Sequence[Attempt], *, keep: bool) -> set[int]:
        """Write what came of attempts; gives the ids that were not written now."""
        ids, leases, outcomes, results, errors, delays, starts, ends, progresses = zip(*attempts, strict=True)
        now = monotonic()
        ages = [None if start is None else now - start for start in starts]
        runs = [None if start is None else end - start for start, end in zip(starts, ends, strict=True)]
        rows = await self._line.fetch(
            SQL["ack"], ids, leases, outcomes, results, errors, delays, ages, runs, progresses, keep
        )
        return set() if len(rows) == len(ids) else set(ids).difference(row[0] for row in rows)

    async def ack_completed(self, attempts: Sequence[Attempt], *, keep: bool) -> set[int] | None:
        """Write completions that bring a result at most; gives the ids that were not written now.

        None: somebody else holds one of the rows, and nothing was written.
        """
        ids, leases, _, results, _, _, starts, ends, _ = zip(*attempts, strict=True)
        now = monotonic()
        ages = [now - start for start in starts]
        runs = [end - start for start, end in zip(starts, ends, strict=True)]
        some = None if results.count(None) == len(results) else results
        left = (await self._line.fetch(SQL["ack_completed"], ids, leases, some, ages, runs, keep))[0][0]
        return None if left is None else set(left)

    async def ack_fate(
        self, attempts: Sequence[Attempt | Job[Any]], sent_before: Sequence[bool], *, keep: bool
    ) -> dict[int, str]:
        """Tell why acks were not written: busy, done (by an earlier try) or lost."""
        ids, leases = [attempt.id for attempt in attempts], [attempt.lease for attempt in attempts]
        rows = await self._line.fetch(SQL["ack_fate"], ids, leases, sent_before, keep)
        return {row[0]: row[1] for row in rows}

    async def ack_with(self, attempt: Attempt, jobs: bytes, *, keep: bool) -> bool:
        """Write what came of one attempt and enqueue jobs in the same commit; tells whether it was written now."""
        job_id, lease, outcome, result, error, delay, start, end, progress = attempt
        age = None if start is None else monotonic() - start
        run = None if start is None or end is None else end - start
        rows = await self._line.fetch(
            SQL["ack_with"], job_id, lease, outcome, result, error, delay, age, run, progress, keep, jobs
        )
        return bool(rows[0][0])

    async def steps(self, job_id: int, lease: int) -> dict[str, bytes] | None:
        """Give what steps of a job were kept, as JSON by name; None: it is not held under this lease any more."""
        rows = await self._line.fetch(SQL["steps"], job_id, lease)
        return {row[0]: row[1] for row in rows if row[0] is not None} if rows else None

    async def keep_step(self, job_id: int, lease: int, name: str, result: bytes) -> bytes | None:
        """Keep what a step gave, unless it was kept before, and give what is kept; None: the lease is lost."""
        kept: bytes | None = (await self._line.fetch(SQL["keep_step"], job_id, lease, name, result))[0][0]
        return kept

    async def start(self, jobs: Sequence[tuple[int, int, float]]) -> set[int]:
        """Write that jobs (id, lease) started so many seconds ago; gives the ids that are still held."""
        ids, leases, ago = zip(*jobs, strict=True)
        return {row[0] for row in await self._line.fetch(SQL["start"], ids, leases, ago)}

    async def report(self, jobs: Sequence[tuple[int, int, bytes]]) -> set[int]:
        """Write the progress of jobs (id, lease, JSON); gives the ids that were written."""
        ids, leases, progress = zip(*jobs, strict=True)
        return {row[0] for row in await self._line.fetch(SQL["report"], ids, leases, progress)}

    async def apply_signals(self) -> list[tuple[int, str | None, str | None]]:
        """Cancel queued jobs that somebody wants cancelled; gives (id, by, reason) of the running ones."""
        return [(row[0], row[1], row[2]) for row in await self._line.fetch(SQL["apply_signals"])]

    # -- upkeep

    async def make_ready(self, count: int, patience: float | None) -> tuple[int, list[float], float | None, bool]:
        """Make due jobs claimable, and jobs of ripe events; gives how many, and the seconds until the next ones of either.

        And the seconds until a schedule wants to be looked at by a worker of so much patience (None: none does); and whether
        limited jobs may be there.
        """
        promoted, made, *nexts, schedule, limited = (await self._line.fetch(SQL["make_ready"], count, patience))[0]
        return promoted + made, [moment for moment in nexts if moment is not None], schedule, limited

    async def due_schedules(self, patience: float, count: int) -> list[DueSchedule]:
        """Give the schedules that a worker of so much patience looks at now."""
        return [DueSchedule(*row) for row in await self._line.fetch(SQL["due_schedules"], patience, count)]

    async def fire_schedule(self, schedule: DueSchedule, plan: Plan, delays: Sequence[float]) -> Fired | None:
        """Make a schedule's jobs and move it on, in one commit; None: it is not as it was read, or somebody holds it."""
        rows = await self._line.fetch(
            SQL["fire_schedule"],
            schedule.name,
            schedule.version,
            plan.slots,
            delays,
            plan.missed,
            plan.until,
            plan.next_at,
        )
        return Fired(*rows[0]) if rows else None

    async def mark_schedule(self, schedule: DueSchedule, problem: str) -> None:
        """Note why a schedule cannot fire."""
        await self._line.fetch(SQL["mark_schedule"], schedule.name, schedule.version, problem)

    async def settle(self, count: int) -> tuple[int, float | None]:
        """Let go what has nothing left to wait for; gives how many jobs it found, and in how many seconds to look again, if soon."""
        row = (await self._line.fetch(SQL["settle"], count))[0]
        return row[0], row[1]

    async def rescue(
        self, count: int, expected: datetime | None, even: float, *, rescuer: int
    ) -> tuple[list[dict[str, Any]], float | None, datetime]:
        """Take back the jobs of dead workers other than the rescuer; gives a dict for each, the seconds until the next can be dead, and the database's clock.

        `expected` is what that clock is thought to show, having run evenly for `even` seconds.
        """
        rows = await self._line.fetch(SQL["rescue"], count, expected, even, rescuer)
        return [dict(row) for row in rows if row["worker"] is not None], rows[0]["next_in"], rows[0]["clock"]

    async def held(self, worker: int) -> set[tuple[int, int]]:
        """Give (id, lease) of the jobs that the database thinks this worker holds."""
        return {(row[0], row[1]) for row in await self._line.fetch(SQL["held"], worker)}

    async def forsake(self, worker: int, jobs: Iterable[tuple[int, int]]) -> list[int]:
        """Leave jobs (id, lease) that this worker holds and knows nothing of to the rescue; gives the ids."""
        ids, leases = zip(*jobs, strict=True)
        return [row[0] for row in await self._line.fetch(SQL["forsake"], worker, ids, leases)]

    async def rescue_orphans(self) -> int:
        """Let the next rescue find leases whose worker has no row; gives the number of such workers."""
        return len(await self._line.fetch(SQL["rescue_orphans"]))

    async def make_partitions(self, ahead: int) -> int:
        """Make history's partitions; gives how many days from today are ready."""
        return int((await self._line.fetch(SQL["make_partitions"], ahead))[0][0])

    async def drop_partitions(self, days: int) -> list[str]:
        """Drop history older than so many days; gives the partitions' names."""
        return [row[0] for row in await self._line.fetch(SQL["drop_partitions"], days)]

    # -- the worker itself

    async def schema_check(self) -> tuple[int, str]:
        """Give the schema's version, and the oldest worker that may run on it."""
        row = (await self._line.fetch(SQL["schema_check"]))[0]
        return row[0], row[1]

    async def lacks(self) -> dict[str, bool]:
        """Give what the server does not have of `advisory_locks` and `notifications`, each with whether the schema relies on it."""
        return {row[0]: row[1] for row in await self._line.fetch(SQL["lacks"])}

    async def register(self, kinds: Iterable[dict[str, Any]], revision: int) -> list[str]:
        """Register kinds, unless a newer revision has; gives those whose declared schedules give way to ones made by hand."""
        taken: list[str] = (await self._line.fetch(SQL["register"], list(kinds), revision))[0]["taken"]
        return taken

    async def enter(self, name: str, version: str, ttl: float, queues: Sequence[str], kinds: Sequence[str]) -> int:
        """Make the worker's row; gives its id."""
        return int((await self._line.fetch(SQL["enter"], name, version, ttl, queues, kinds))[0][0])

    async def beat(self, worker: int) -> Beat | None:
        """Say that the worker lives; None: it has been taken for dead."""
        rows = await self._line.fetch(SQL["beat"], worker)
        return Beat(*rows[0]) if rows else None

    async def say_draining(self, worker: int) -> None:
        """Say that the worker claims no more."""
        await self._line.fetch(SQL["say_draining"], worker)

    async def leave(self, worker: int) -> None:
        """Take the worker's row away; if it still holds jobs, others may rescue them at once."""
        await self._line.fetch(SQL["leave"], worker)

    # -- questions

    async def depth(self) -> list[Depth]:
        """Count live jobs by queue and state, with the age of the oldest ready one in seconds."""
        return [Depth(*row) for row in await self._line.fetch(SQL["depth"])]

    async def census(self, *, sweep: float, grace: float) -> list[CensusRow]:
        """Give what there is to know of the whole database besides its jobs."""
        return [CensusRow(*row) for row in await self._line.fetch(SQL["census"], sweep, grace)]

    async def queue_health(self, *, sweep: float, grace: float) -> tuple[int, int]:
        """Count the jobs that hang, and those that are ready."""
        row = (await self._line.fetch(SQL["queue_health"], sweep, grace))[0]
        return row[0], row[1]

    async def stats(self) -> list[dict[str, Any]]:
        """Count live jobs by queue, kind and state."""
        return [dict(row) for row in await self._line.fetch(SQL["stats"])]

    async def idle(self, queues: Sequence[str], kinds: Sequence[str]) -> bool:
        """Tell whether nothing is left that could run without waiting for a time to come."""
        return bool((await self._line.fetch(SQL["idle"], queues, kinds))[0][0])


def job_of(row: Any, lease: int) -> Job[Any]:
    """Make the job of a claimed row."""
    # By place and all at once, in the order of howdah.claim_ready: this is the hottest path, and a field by its name takes twice as long.
    job: Job[Any] = Job()
    (
        job.id,
        job.queue,
        job.kind,
        job.raw_payload,
        job.priority,
        job.attempt,
        job.max_attempts,
        job.timeout,
        job.waited,
        job.expires_in,
        job.subject,
        job.raw_headers,
        job.created_at,
        _,
        job.batch,
    ) = row[:15]
    job.lease = lease
    job.cancelled = job.abandoned = job.interrupted = job.timed_out = job.told_start = False
    job.start_first = job.max_attempts == 1
    job.task = job.progress = job.reported = job.steps = job.loans = job.chained = None
    return job
