"""The doctor on schedules: those that cannot fire, those that nobody fires, and those whose jobs nobody would run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from howdah.doctor.finding import fail, ok, several, span, warn
from howdah.queries import read_query

if TYPE_CHECKING:
    import asyncpg

    from howdah.doctor.finding import Finding

#: A schedule may be so many seconds late before the doctor minds.
LATE = 60.0


async def examine_schedules(connection: asyncpg.Connection) -> list[Finding]:
    """Look at every schedule."""
    rows = await connection.fetch(read_query("list_schedules"), None)
    findings = [finding for row in rows if (finding := _examine(row)) is not None]
    if findings or not rows:
        return findings or [ok("schedules", "none")]
    nexts = [row["next_at"] - row["asked_at"] for row in rows if row["next_at"] is not None]
    soon = f", the next slot in {span(max(min(nexts).total_seconds(), 0))}" if nexts else ""
    return [ok("schedules", f"{several(len(rows), 'schedule')}{soon}")]


def _examine(row: asyncpg.Record) -> Finding | None:
    name = row["name"]
    if row["paused_at"] is not None:
        by, since = row["paused_by"] or "somebody", span((row["asked_at"] - row["paused_at"]).total_seconds())
        return warn("schedules", f"{name} was paused {since} ago by {by}", f"howdah schedule resume {name}")
    if row["problem"] is not None:
        mend = "mend its declaration, deploy" if row["declared"] else f"howdah schedule add {name} … mends it"
        return fail("schedules", f"{name} cannot fire: {row['problem']}", f"{mend}; it is tried again every minute")
    if (row["overdue_seconds"] or 0) > LATE:
        return fail(
            "schedules",
            f"{name} should have fired {span(row['overdue_seconds'])} ago and nobody did",
            "howdah run: a worker that stays; one with --until-empty fires nothing",
        )
    if not row["served"]:
        return warn(
            "schedules",
            f"{name} makes jobs of kind {row['kind']}, which no living worker has a handler for",
            f"deploy a worker with a handler for {row['kind']}, or howdah schedule remove {name}",
        )
    return None
