"""What people ask about jobs: which there are, how many of a sort, and everything about one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    Row = dict[str, Any]

By = Literal["error", "kind", "queue", "state", "worker"]

LIVE_STATES = ("waiting", "scheduled", "retrying", "ready", "running")
ENDED_STATES = ("completed", "dead", "cancelled")
#: Where an error is looked for unless states are named: a job that went well in the end is no failure.
FAILED_STATES = ("dead", "retrying")
#: What stands in the place of a secret.
MASK = "***"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs; what is empty asks for nothing. Times may be given as how long ago, by the database's clock.

    `error` is a fingerprint, an exception's type, or a part of the message.
    """

    states: Sequence[str] = ()
    queue: str | None = None
    kind: str | None = None
    subject: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    error: str | None = None
    _halves: tuple[tuple[str, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        states = tuple(self.states) or (FAILED_STATES if self.error is not None else ())
        # Asked for apart, because ended jobs are found by indexes that an "or" with live ones would hide.
        halves = [tuple(state for state in half if state in states) for half in (LIVE_STATES, ENDED_STATES) if states]
        object.__setattr__(self, "_halves", tuple(filter(None, halves)) or ((),))

    async def arguments(self, connection: asyncpg.Connection) -> list[list[Any]]:
        """Give the first nine arguments of find_jobs, once for each half of the view that has to be asked by itself."""
        times = [self.since, self.until]
        if any(isinstance(time, timedelta) for time in times):
            now = await connection.fetchval("select clock_timestamp()")
            times = [now - time if isinstance(time, timedelta) else time for time in times]
        return [
            [
                list(states) or None,
                not states or states[0] in LIVE_STATES,
                not states or states[0] in ENDED_STATES,
                self.queue,
                self.kind,
                self.subject,
                *times,
                self.error,
            ]
            for states in self._halves
        ]


async def list_jobs(connection: asyncpg.Connection, wanted: Wanted, limit: int) -> list[Row]:
    """Give the newest jobs, newest first, with secrets masked."""
    found = [
        _masked(row)
        for arguments in await wanted.arguments(connection)
        for row in await connection.fetch(_of_found("list_jobs"), *arguments, limit)
    ]
    return sorted(found, key=lambda row: -row["id"])[:limit]


async def find_ids(connection: asyncpg.Connection, wanted: Wanted, limit: int | None = None) -> list[int]:
    """Give the ids of the oldest jobs, oldest first."""
    found = [
        row["id"]
        for arguments in await wanted.arguments(connection)
        for row in await connection.fetch(_of_found("find_ids"), *arguments, limit)
    ]
    return sorted(found)[:limit]


async def group_jobs(connection: asyncpg.Connection, wanted: Wanted, by: By) -> list[Row]:
    """Count jobs by something, the most frequent first; by error, the same failure of many jobs is one row."""
    if by == "error" and not wanted.states:
        wanted = Wanted(
            FAILED_STATES, wanted.queue, wanted.kind, wanted.subject, wanted.since, wanted.until, wanted.error
        )
    groups: dict[str, Row] = {}
    for arguments in await wanted.arguments(connection):
        for record in await connection.fetch(_of_found("group_jobs"), *arguments, by):
            row = dict(record)
            held = groups.get(row["name"])
            groups[row["name"]] = row if held is None else _joined(held, row)
    return sorted(groups.values(), key=lambda row: (-row["jobs"], row["name"] or ""))


async def show_job(connection: asyncpg.Connection, job_id: int) -> Row | None:
    """Give everything that is known of a job, with secrets masked."""
    row = await connection.fetchrow(SQL["show_job"], job_id)
    if row is None:
        return None
    try:
        steps = await connection.fetch(SQL["job_steps"], job_id)
    except asyncpg.InsufficientPrivilegeError:  # steps may hold secrets: a reader does without
        steps = []
    return {**_masked(row), "steps": [dict(step) for step in steps]}


async def explain_job(connection: asyncpg.Connection, job_id: int) -> str:
    """Say why a job is where it is, and what would change that."""
    return str(await connection.fetchval(SQL["explain"], job_id))


async def job_state(connection: asyncpg.Connection, job_id: int) -> Row | None:
    """Give a job's state, result and last error."""
    row = await connection.fetchrow(SQL["job_state"], job_id)
    return None if row is None else dict(row)


async def live_jobs(
    connection: asyncpg.Connection, queue: str | None, kind: str | None, subject: str | None
) -> dict[str, int]:
    """Count live jobs by state."""
    return {row["state"]: row["jobs"] for row in await connection.fetch(SQL["live_jobs"], queue, kind, subject)}


async def stats(connection: asyncpg.Connection) -> dict[str, list[Row]]:
    """Give live jobs by queue, kind and state, the paused queues, and who died in the last day."""
    return {
        part: [dict(row) for row in await connection.fetch(SQL[query])]
        for part, query in (("jobs", "live_stats"), ("paused", "paused_queues"), ("died_last_day", "recent_deaths"))
    }


async def known_queues(connection: asyncpg.Connection) -> list[str]:
    """Give the queues that somebody works on, that have live jobs, or that were paused."""
    return [row["name"] for row in await connection.fetch(SQL["known_queues"])]


def _of_found(query: str) -> str:
    """Give a statement about `found`, with the jobs that find_jobs finds in its place.

    Not as a CTE: the view's clock is volatile, so that it would be computed for every job before anything is left out.
    """
    return SQL[query].replace("from found", f"from (\n{SQL['find_jobs']}) found", 1)


def _masked(record: asyncpg.Record) -> Row:
    """Make a row of a record, without what its kind declares secret."""
    row = dict(record)
    secret = set(row.pop("secret") or ())
    row["payload"] = {name: MASK if name in secret else value for name, value in row["payload"].items()}
    return row


def _joined(one: Row, other: Row) -> Row:
    """Make one group of two."""
    return {
        **one,
        "jobs": one["jobs"] + other["jobs"],
        "kinds": sorted({*one["kinds"], *other["kinds"]}),
        "states": sorted({*one["states"], *other["states"]}),
        "first_at": min(one["first_at"], other["first_at"]),
        "last_at": max(one["last_at"], other["last_at"]),
        "example": max(one["example"], other["example"]),
    }
