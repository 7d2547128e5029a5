"""Enqueue over any asyncpg connection: the jobs exist exactly when the caller's transaction commits."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from howdah.errors import HowdahError, RefusedError
from howdah.newjob import PAYLOAD_OPTIONS, Enqueued, NewJob, arguments_json, payload_json, refusals
from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from typing import Unpack

    from asyncpg import Connection
    from asyncpg.pool import PoolConnectionProxy

    from howdah.newjob import BatchOptions, JobOptions, PayloadOptions

    AnyConnection = Connection[Any] | PoolConnectionProxy[Any]

#: The most that one statement carries, in jobs and in bytes of payloads: what bounds the memory, here and in the server.
CHUNK = 10_000
CHUNK_BYTES = 16 << 20


async def enqueue(connection: AnyConnection, kind: str, payload: Any = None, **options: Unpack[JobOptions]) -> Enqueued:
    """Enqueue one job in the transaction of `connection`, which is the caller's, and give its id.

    `payload` is a mapping, a pydantic model or a dataclass. Raises RefusedError.
    """
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals():
        row = await connection.fetchrow(SQL["enqueue"], arguments)
    if row is None:
        raise HowdahError("howdah.enqueue gave no row")
    return Enqueued(row["id"], row["created"])


async def create_batch(
    connection: AnyConnection, kind: str, payload: Any = None, **options: Unpack[BatchOptions]
) -> int:
    """Open a batch and give its id: a job that runs once every job enqueued with `batch=id` has ended.

    Enqueue the first members in the same transaction: a batch without a living member is over.
    """
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals():
        return int(await connection.fetchval(SQL["create_batch"], arguments))


async def enqueue_payloads(
    connection: AnyConnection, kind: str, payloads: Iterable[Any], **options: Unpack[PayloadOptions]
) -> list[int]:
    """Enqueue a job of one kind for each payload, all of them or none, and give their ids in order: the fastest way.

    `payloads` is read as it is sent, 10,000 or 16 MiB at a time. Raises RefusedError, which counts the jobs from 1.
    """
    shared = {"kind": kind, **options}
    arguments_json(shared)  # what is wrong with them is refused even if there is no payload
    if other := sorted(shared.keys() - PAYLOAD_OPTIONS):
        raise RefusedError("JB002", f"payloads of one call cannot have {other[0]}", "enqueue_many takes any argument")
    ids: list[int] = []
    async with _together(connection):
        for chunk in _chunks(_pack(place, one, shared) for place, one in enumerate(payloads, start=1)):
            ids += await _send_alike(connection, chunk)
    return ids


async def enqueue_many(connection: AnyConnection, jobs: Iterable[NewJob | Mapping[str, Any]]) -> list[Enqueued]:
    """Enqueue jobs of any sort, all of them or none, and give their ids in order.

    Jobs that differ in nothing but their payloads go as fast as with enqueue_payloads. `jobs` is read as it is sent; only those
    with a unique key are kept, to go together at the end: in one statement, two callers with the same keys cannot deadlock.
    """
    keyed: list[_Packed] = []
    done: dict[int, Enqueued] = {}

    def without_key() -> Iterator[_Packed]:
        for place, job in enumerate(jobs, start=1):
            rest = job.arguments() if isinstance(job, NewJob) else dict(job)
            packed = _pack(place, rest.pop("payload", None), rest)
            if packed.rest.get("unique_key") is None:
                yield packed
            else:
                keyed.append(packed)

    async with _together(connection):
        for chunk in _chunks(without_key()):
            if _agree(chunk):
                for packed, job_id in zip(chunk, await _send_alike(connection, chunk), strict=True):
                    done[packed.place] = Enqueued(job_id, created=True)
            else:
                await _send_any(connection, chunk, done)
        if keyed:
            await _send_any(connection, keyed, done)
    return [done[place] for place in range(1, len(done) + 1)]


class _Packed(NamedTuple):
    """A job on its way: its place in the caller's list from 1, its payload as JSON, its other arguments as given."""

    place: int
    payload: bytes
    rest: dict[str, Any]


def _pack(place: int, payload: Any, rest: dict[str, Any]) -> _Packed:
    try:
        return _Packed(place, payload_json(payload), rest)
    except RefusedError as error:
        raise RefusedError(error.sqlstate, f"job {place}: {error.message}", error.hint) from error


def _chunks(jobs: Iterator[_Packed]) -> Iterator[list[_Packed]]:
    chunk: list[_Packed] = []
    size = 0
    for job in jobs:
        chunk.append(job)
        size += len(job.payload)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _agree(chunk: Sequence[_Packed]) -> bool:
    """Tell whether these jobs differ in nothing but their payloads, and want nothing that payloads alone cannot say."""
    first = chunk[0].rest
    return first.keys() <= PAYLOAD_OPTIONS and all(job.rest == first for job in chunk)


async def _send_alike(connection: AnyConnection, chunk: Sequence[_Packed]) -> list[int]:
    payloads = b"[" + b",".join([job.payload for job in chunk]) + b"]"
    with refusals(lambda message: _renumber(message, chunk)):
        ids = await connection.fetchval(SQL["enqueue_payloads"], arguments_json(chunk[0].rest), payloads.decode())
    return list(ids)


async def _send_any(connection: AnyConnection, chunk: Sequence[_Packed], done: dict[int, Enqueued]) -> None:
    """Send jobs of any sort, and put what came back under their places."""
    jobs = ",".join(_whole(job) for job in chunk)
    with refusals(lambda message: _renumber(message, chunk)):
        rows = await connection.fetch(SQL["enqueue_many"], f"[{jobs}]")
    for job, row in zip(chunk, rows, strict=True):
        done[job.place] = Enqueued(row["id"], row["created"])


def _whole(job: _Packed) -> str:
    try:
        rest = arguments_json(job.rest)
    except RefusedError as error:
        raise RefusedError(error.sqlstate, f"job {job.place}: {error.message}", error.hint) from error
    return f'{{"payload":{job.payload.decode()}{"," if rest != "{}" else ""}{rest[1:]}'


def _renumber(message: str, chunk: Sequence[_Packed]) -> str:
    """Count as the caller does: the server knows only the jobs of one statement."""
    return re.sub(r"^(howdah: job )(\d+)", lambda found: f"{found[1]}{chunk[int(found[2]) - 1].place}", message)


@asynccontextmanager
async def _together(connection: AnyConnection) -> AsyncIterator[None]:
    """Make one transaction of several statements, unless the caller has one open."""
    if connection.is_in_transaction():
        yield
    else:
        async with connection.transaction():
            yield
