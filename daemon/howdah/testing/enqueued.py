"""Assert what is enqueued, and show what is there instead."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from howdah.database import connected
from howdah.jsontext import encode
from howdah.testing.databases import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import asyncpg

#: How many other jobs a failure shows.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """A job that has not ended; `state` is `coalesced` for an event of which no job has been made yet, and its id is 0."""

    id: int
    kind: str
    queue: str
    state: str
    priority: int
    subject: str | None
    payload: dict[str, Any]

    def __str__(self) -> str:
        subject = f" subject={self.subject}" if self.subject is not None else ""
        return f"{self.kind} {self.id or '-'} {self.state} queue={self.queue}{subject} {_json(self.payload)}"


async def assert_enqueued(
    connection: asyncpg.Connection | Database | str,
    kind: str,
    *,
    payload: Mapping[str, Any] | None = None,
    count: int | None = None,
    queue: str | None = None,
    subject: str | None = None,
) -> list[EnqueuedJob]:
    """Assert that such a job is live or coalesced, and give all that are such.

    Args:
        connection: what is asked; the connection of an open transaction sees what that has enqueued.
        kind: of the job.
        payload: must be contained in the job's, objects in it likewise; values may be whatever JSON is made of, and
            matchers such as `unittest.mock.ANY`.
        count: exactly so many; at least one if it is not given.
        queue: the job's queue.
        subject: the job's subject.

    """
    __tracebackhide__ = True
    jobs = await _live(connection)
    found = [job for job in jobs if _differs(job, kind, payload, queue, subject) is None]
    if count is None and found:
        return found
    if count is not None and len(found) == count:
        return found
    wanted = _describe(kind, payload, queue, subject)
    said = f"no job is enqueued: {wanted}" if not found else f"{len(found)} jobs are enqueued and not {count}: {wanted}"
    raise AssertionError(f"{said}\n{_others(jobs, kind, payload, queue, subject)}")


async def assert_not_enqueued(
    connection: asyncpg.Connection | Database | str,
    kind: str,
    *,
    payload: Mapping[str, Any] | None = None,
    queue: str | None = None,
    subject: str | None = None,
) -> None:
    """Assert that no such job is live or coalesced; the arguments are those of `assert_enqueued`."""
    __tracebackhide__ = True
    found = [job for job in await _live(connection) if _differs(job, kind, payload, queue, subject) is None]
    if found:
        lines = "\n  ".join(str(job) for job in found[:SHOWN])
        raise AssertionError(f"enqueued, and should not be: {_describe(kind, payload, queue, subject)}\n  {lines}")


async def _live(source: asyncpg.Connection | Database | str) -> list[EnqueuedJob]:
    async with _connection(source) as connection:
        # As text: a caller's connection may read jsonb in whichever way it likes.
        text = await connection.fetchval(_LIVE)
    return [EnqueuedJob(**job) for job in orjson.loads(text)]


@asynccontextmanager
async def _connection(source: asyncpg.Connection | Database | str) -> AsyncIterator[asyncpg.Connection]:
    if isinstance(source, str | Database):
        async with connected(source if isinstance(source, str) else source.url, name="testing") as connection:
            yield connection
    else:
        yield source


def _differs(
    job: EnqueuedJob, kind: str, payload: Mapping[str, Any] | None, queue: str | None, subject: str | None
) -> str | None:
    """Say in what a job is not the wanted one; None if it is."""
    if job.kind != kind:
        return f"kind is {job.kind!r}"
    if queue is not None and job.queue != queue:
        return f"queue is {job.queue!r}, not {queue!r}"
    if subject is not None and job.subject != subject:
        return f"subject is {job.subject!r}, not {subject!r}"
    return _lacks(job.payload, payload, "payload") if payload is not None else None


def _lacks(found: Any, wanted: Any, place: str) -> str | None:
    """Say where `found` does not contain `wanted`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name, value in wanted.items():
            if name not in found:
                return f"{place}.{name} is missing"
            if (lack := _lacks(found[name], value, f"{place}.{name}")) is not None:
                return lack
        return None
    # First as it is: a matcher has no JSON. Then as the JSON that it becomes: a UUID, a date, a model.
    if wanted == found or orjson.loads(bytes(encode(wanted))) == found:
        return None
    return f"{place} is {_json(found)}, not {_json(wanted)}"


def _others(
    jobs: list[EnqueuedJob], kind: str, payload: Mapping[str, Any] | None, queue: str | None, subject: str | None
) -> str:
    if not jobs:
        return "no job is enqueued at all"
    same = sorted(jobs, key=lambda job: (job.kind != kind, job.id))
    lines = []
    for job in same[:SHOWN]:
        why = _differs(job, kind, payload, queue, subject) if job.kind == kind else None
        lines.append(f"{job}{f'   <- {why}' if why else ''}")
    if len(same) > SHOWN:
        lines.append(f"and {len(same) - SHOWN} more")
    return "there are:\n  " + "\n  ".join(lines)


def _describe(kind: str, payload: Mapping[str, Any] | None, queue: str | None, subject: str | None) -> str:
    words = [kind]
    if queue is not None:
        words.append(f"queue={queue}")
    if subject is not None:
        words.append(f"subject={subject}")
    if payload is not None:
        words.append(f"with {_json(payload)}")
    return " ".join(words)


def _json(value: Any) -> str:
    return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


_LIVE = """
select coalesce(json_agg(x order by x.id), '[]')::text from (
  select j.id, j.kind, j.queue, j.state, j.priority, j.subject, j.payload from howdah.jobs j
  union all
  select 0, e.kind, coalesce(e.queue, k.queue, 'default'), 'coalesced', coalesce(e.priority, k.priority, 0), e.subject, e.payload
  from howdah.events e left join howdah.kinds k on k.name = e.kind) x
"""
