"""Rolling deploys: workers of two releases of the application side by side, with different kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended, is_empty, state_of
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

#: The release before: files as old as their checkout. It knows `gone`, which the next one has no more.
OLD = (
    JOURNAL
    + """
os.utime(__file__, (1_000_000_000, 1_000_000_000))

class Mail(BaseModel):
    to: str = "her"

@handler("mail", priority=1, schedule="0 3 * * *")
async def mail(job: Job[Mail]) -> str:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
    return "old"

@handler("gone")
async def gone(job: Job) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
"""
)

#: The release after: `mail` has one field more and another priority, `fresh` is new.
NEW = (
    JOURNAL
    + """
class Mail(BaseModel):
    to: str = "her"
    subject: str = "none"

@handler("mail", priority=5, schedule="0 4 * * *")
async def mail(job: Job[Mail]) -> str:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
    return "new"

@handler("fresh")
async def fresh(job: Job) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
"""
)


@pytest.mark.fault(
    "Versions",
    "two releases of the application work at once",
    "each takes the kinds that it knows, and nobody's jobs die",
)
async def test_workers_of_two_releases_take_what_they_know(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    old = await daemon(OLD, queues="default:5")
    new = await daemon(NEW, queues="default:5")
    figures.faults += 1
    kinds = ["mail", "gone", "fresh", "innocent"]
    rows = await enqueue_many(connection, *({"kind": kind, "payload": {"to": "her"}} for kind in kinds * 50))
    await aeventually(lambda: is_empty(connection))
    await checker.check(figures=figures)
    assert await takers(connection, "gone") == {old.worker}
    assert await takers(connection, "fresh") == {new.worker}
    assert await connection.fetch("select distinct state, attempt from howdah.job_history") == [("completed", 1)]
    assert await has_ended(connection, *(row["id"] for row in rows))

    # The old one leaves: what only it knew waits, unharmed, until somebody knows it again.
    assert await old.stop() == 0
    left = await enqueue(connection, "gone", {})
    await end_of(connection, await enqueue(connection, "fresh", {}))
    assert await state_of(connection, left) == "ready"
    assert "gone" in await connection.fetchval("select howdah.explain($1)", left)
    again = await daemon(OLD)
    assert (await end_of(connection, left))["state"] == "completed"
    await checker.check(figures=figures)
    assert await again.stop() == 0
    assert await new.stop() == 0


@pytest.mark.fault(
    "Versions", "an old worker restarts in the middle of a deploy", "what the new code has registered stands"
)
async def test_an_old_worker_that_restarts_takes_nothing_back(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await Checker(connection).install()
    await daemon(NEW)
    registered = await registration(connection)
    assert registered["priority"] == 5
    assert registered["cron"] == "0 4 * * *"
    old = await daemon(OLD)
    assert await registration(connection) == registered
    assert await connection.fetchval("select count(*) from howdah.kinds where name = 'gone'") == 1, (
        "new kinds are taken from anybody"
    )
    # And the old one works by what is on record, and as well as it can.
    await enqueue_many(connection, *({"kind": "mail", "payload": {"to": "her", "subject": "hello"}} for _ in range(50)))
    await aeventually(lambda: is_empty(connection))
    assert await connection.fetch("select distinct state, priority from howdah.job_history") == [("completed", 5)]
    assert await old.stop() == 0


async def takers(connection: asyncpg.Connection, kind: str) -> set[int]:
    rows = await connection.fetch("select distinct leased_by from howdah.job_history where kind = $1", kind)
    return {row["leased_by"] for row in rows}


async def registration(connection: asyncpg.Connection) -> dict[str, Any]:
    row = await connection.fetchrow(
        "select k.fields, k.schema, k.priority, k.revision, s.cron from howdah.kinds k join howdah.schedules s on s.name = k.name where k.name = 'mail'"
    )
    return dict(row)
