"""The protocol between a worker and the database, so that tests read as prose."""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Json = dict[str, Any]

LEASES = 2**63 - 1


# -- enqueue ----------------------------------------------------------------------------------------------------------


async def enqueue(connection: asyncpg.Connection, kind: str = "work", payload: Json | None = None, **given: Any) -> int:
    """Enqueue one job and return its id."""
    row = await enqueued(connection, kind, payload, **given)
    return int(row["id"])


async def enqueued(
    connection: asyncpg.Connection, kind: str = "work", payload: Json | None = None, **given: Any
) -> asyncpg.Record:
    """Enqueue one job and return the row (id, created); other arguments go by name, and only those that are given."""
    arguments = {"kind": kind, "payload": {} if payload is None else payload, **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    return await connection.fetchrow(f"select * from howdah.enqueue({places})", *arguments.values())


async def enqueue_coalesced(
    connection: asyncpg.Connection,
    kind: str = "work",
    payload: Json | None = None,
    key: str = "key",
    delay: timedelta = timedelta(),
    **given: Any,
) -> None:
    arguments = {"kind": kind, "payload": {} if payload is None else payload, "key": key, "delay": delay, **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    await connection.execute(f"select howdah.enqueue_coalesced({places})", *arguments.values())


async def enqueue_many(connection: asyncpg.Connection, *jobs: Json) -> list[asyncpg.Record]:
    """Enqueue in one call and return the rows (ordinal, id, created) as they come."""
    return await connection.fetch("select * from howdah.enqueue_many($1)", list(jobs))


async def register(connection: asyncpg.Connection, *kinds: Json, revision: int = 1) -> None:
    await connection.execute("select howdah.register($1, $2)", list(kinds), revision)


@contextmanager
def refused(sqlstate: str, *, naming: str) -> Iterator[None]:
    """Expect a refusal of our own class, whose message names `naming` and which carries a hint."""
    with pytest.raises(asyncpg.PostgresError) as caught:
        yield
    error = caught.value
    assert getattr(error, "sqlstate", None) == sqlstate, error
    assert naming in str(error)
    assert getattr(error, "hint", None), f"no hint: {error}"


# -- a worker ---------------------------------------------------------------------------------------------------------


async def add_worker(
    connection: asyncpg.Connection,
    *,
    name: str = "tester:1",
    queues: Sequence[str] = ("default",),
    kinds: Sequence[str] = ("work",),
    ttl: float = 30,
    silent_for: float = 0,
) -> int:
    """Add a worker that beat last `silent_for` seconds ago, and return its id."""
    worker: int = await connection.fetchval(
        """insert into howdah.workers (name, version, queues, kinds, ttl, beat_at)
        values ($1, '0.1.0', $2, $3, $4, clock_timestamp() - $5::interval) returning id""",
        name,
        list(queues),
        list(kinds),
        timedelta(seconds=ttl),
        timedelta(seconds=silent_for),
    )
    return worker


@dataclass(frozen=True, slots=True)
class Line:
    """Where a claim looks in `queue`: behind (`rank`, `past`), to id `end` of rank `upto`, or to its end; a rank is 10 - priority."""

    queue: str
    rank: int = -1
    past: int = 0
    upto: int = 10
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed job: its id, its lease, and what the claim returned."""

    id: int
    lease: int
    row: asyncpg.Record = field(compare=False)


async def claim(
    connection: asyncpg.Connection,
    worker: int = 1,
    *,
    count: int = 100,
    queue: str = "default",
    rooms: Mapping[str, int] | None = None,
    kinds: Sequence[str] = ("work",),
    lines: Iterable[Line] | None = None,
    lease: int | None = None,
) -> list[Held]:
    """Claim up to `count` jobs of `queue` (or of each queue as many as `rooms` says), looking from the start."""
    rooms = {queue: count} if rooms is None else rooms
    lines = [Line(name) for name in rooms] if lines is None else list(lines)
    lease = secrets.randbelow(LEASES) if lease is None else lease
    rows = await connection.fetch(
        "select * from howdah.claim_ready($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        worker,
        lease,
        list(kinds),
        list(rooms),
        list(rooms.values()),
        [line.queue for line in lines],
        [line.rank for line in lines],
        [line.past for line in lines],
        [line.upto for line in lines],
        [line.end for line in lines],
    )
    return [Held(row["id"], lease, row) for row in rows]


async def add_dead_worker(connection: asyncpg.Connection, **given: Any) -> int:
    """Add a worker that has been silent for longer than its ttl; a short ttl, because the rescuer is young itself."""
    return await add_worker(connection, **{"ttl": 0.001, "silent_for": 60, **given})


async def claim_one(connection: asyncpg.Connection, worker: int = 1, **given: Any) -> Held:
    """Claim the one job that is there."""
    [held] = await claim(connection, worker, **given)
    return held


async def claim_suspect(
    connection: asyncpg.Connection,
    worker: int = 1,
    *,
    kinds: Sequence[str] = ("work",),
    queues: Sequence[str] = ("default",),
    begun: bool = False,
    before: Held | None = None,
) -> Held | None:
    lease = secrets.randbelow(LEASES)
    last = (None, None) if before is None else (before.id, before.lease)
    row = await connection.fetchrow(
        "select * from howdah.claim_suspect($1, $2, $3, $4, $5, $6, $7)",
        worker,
        lease,
        list(kinds),
        list(queues),
        begun,
        *last,
    )
    return Held(row["id"], lease, row) if row else None


async def write_start(connection: asyncpg.Connection, job: Held) -> None:
    """Write down that the handler was called."""
    await connection.execute(
        "update howdah.jobs set started_at = greatest(claimed_at, clock_timestamp()) where id = $1 and lease = $2",
        job.id,
        job.lease,
    )


# -- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ack:
    """What came of an attempt.

    `run` is how long the handler ran, in seconds (None: it never started), and `age` is how long ago it began, if that
    is longer.
    """

    job: Held
    outcome: str
    result: Any = None
    error: Json | None = None
    delay: float | None = None
    run: float | None = 0.0
    age: float | None = None
    progress: Any = None


def completed(job: Held, result: Any = None, run: float | None = 0.0, age: float | None = None) -> Ack:
    return Ack(job, "completed", result=result, run=run, age=age)


def dead(job: Held, message: str = "hopeless", run: float | None = 0.0) -> Ack:
    return Ack(job, "dead", error={"type": "ValueError", "message": message}, run=run)


def cancelled(job: Held, by: str, reason: str) -> Ack:
    return Ack(job, "cancelled", error={"by": by, "reason": reason})


def retried(job: Held, delay: float = 0, message: str = "went wrong") -> Ack:
    return Ack(job, "retried", delay=delay, error={"type": "ValueError", "message": message})


def snoozed(job: Held, delay: float) -> Ack:
    return Ack(job, "snoozed", delay=delay)


def released(job: Held) -> Ack:
    return Ack(job, "released", run=None)


def rescued(job: Held) -> Ack:
    return Ack(job, "rescued", run=None)


def crashed(job: Held, message: str = "it kills") -> Ack:
    return Ack(job, "crashed", error={"type": "WorkerDied", "message": message}, run=None)


async def ack(connection: asyncpg.Connection, *acks: Ack, keep: bool = True) -> set[int]:
    """Write acks in one batch and return the ids that were written."""
    rows = await connection.fetch(
        "select id from howdah.ack($1, $2, $3, $4::text[]::jsonb[], $5, $6, $7, $8, $9::text[]::jsonb[], $10) as id",
        [ack.job.id for ack in acks],
        [ack.job.lease for ack in acks],
        [ack.outcome for ack in acks],
        [_as_json(ack.result) for ack in acks],
        [ack.error for ack in acks],
        [ack.delay for ack in acks],
        [ack.run if ack.age is None else ack.age for ack in acks],
        [ack.run for ack in acks],
        [_as_json(ack.progress) for ack in acks],
        keep,
    )
    return {row["id"] for row in rows}


def _as_json(value: Any) -> str | None:
    """A list within a list would be taken for an array of arrays."""
    return None if value is None else json.dumps(value)


async def fate(connection: asyncpg.Connection, job: Held, *, sent_before: bool = False, keep: bool = True) -> str:
    """Tell what became of an ack that was not written."""
    fate: str = await connection.fetchval(
        "select fate from howdah.ack_fate($1, $2, $3, $4)", [job.id], [job.lease], [sent_before], keep
    )
    return fate


# -- where a job is ---------------------------------------------------------------------------------------------------


async def live(connection: asyncpg.Connection, job_id: int) -> asyncpg.Record | None:
    """The row of a live job, or None."""
    return await connection.fetchrow("select * from howdah.jobs where id = $1", job_id)


async def ended(connection: asyncpg.Connection, job_id: int) -> asyncpg.Record | None:
    """The row of an ended job, or None."""
    return await connection.fetchrow("select * from howdah.job_history where id = $1", job_id)


async def status(connection: asyncpg.Connection, job_id: int) -> asyncpg.Record:
    """What everybody may read of a job; it must be there exactly once."""
    [row] = await connection.fetch("select * from howdah.job_status where id = $1", job_id)
    return row


async def waits_for_lock(connection: asyncpg.Connection, pid: int) -> bool:
    """Tell whether the backend `pid` waits for another one's lock, seen from a connection that is free."""
    waits: bool = await connection.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid)
    return waits
