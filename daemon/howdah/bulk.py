"""Many jobs retried or cancelled, in small transactions; what is refused for one job keeps none of the others back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How many jobs are done in one transaction.
BATCH = 200
KEY_HELD = "a live job has the same unique key"


@dataclass(slots=True)
class Report:
    """What became of many jobs."""

    #: Job → its new id (retry), or its state (cancel).
    done: dict[int, Any] = field(default_factory=dict)
    #: Job → why not.
    refused: dict[int, str] = field(default_factory=dict)

    def reasons(self) -> dict[str, list[int]]:
        """Give the refused jobs by reason."""
        reasons: dict[str, list[int]] = {}
        for job_id, reason in self.refused.items():
            reasons.setdefault(reason, []).append(job_id)
        return reasons


async def retry_jobs(
    connection: asyncpg.Connection, ids: Sequence[int], on_progress: Callable[[int], None] = lambda _: None
) -> Report:
    """Make a new job of each ended one; `on_progress` hears how many are behind us."""
    report = Report()
    for some in _batches(ids):
        try:
            rows = {row["id"]: row["new_id"] for row in await connection.fetch(SQL["retry_jobs"], some)}
        except asyncpg.PostgresError as error:
            if not _is_refusal(error):
                raise
            rows = {}
        for job_id in some:
            if rows.get(job_id) is not None:
                report.done[job_id] = rows[job_id]
            elif job_id in rows:
                report.refused[job_id] = KEY_HELD
            else:  # it is not there, or somebody came in between: asked for by itself, it says why
                await _alone(connection, report, job_id, SQL["retry"])
        on_progress(len(some))
    return report


async def cancel_jobs(
    connection: asyncpg.Connection,
    ids: Sequence[int],
    *,
    by: str | None,
    reason: str | None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Cancel each job; a running one is told, and its state is then `running`."""
    report = Report()
    for some in _batches(ids):
        try:
            rows = await connection.fetch(SQL["cancel_jobs"], some, by, reason)
            report.done |= {row["id"]: row["state"] for row in rows}
        except asyncpg.PostgresError as error:
            if not _is_refusal(error):
                raise
            for job_id in some:
                await _alone(connection, report, job_id, SQL["cancel"], by, reason)
        on_progress(len(some))
    return report


async def already_retried(connection: asyncpg.Connection, ids: Sequence[int]) -> set[int]:
    """Give those of the jobs of which a retry has made another already."""
    return {row["id"] for row in await connection.fetch(SQL["retried_jobs"], ids)} if ids else set()


async def _alone(connection: asyncpg.Connection, report: Report, job_id: int, sql: str, *arguments: Any) -> None:
    try:
        report.done[job_id] = await connection.fetchval(sql, job_id, *arguments)
    except asyncpg.PostgresError as error:
        if not _is_refusal(error):
            raise
        held = error.sqlstate == "JB005"
        report.refused[job_id] = KEY_HELD if held else str(error.args[0]).removeprefix("howdah: ")


def _batches(ids: Sequence[int]) -> list[list[int]]:
    return [list(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]


def _is_refusal(error: asyncpg.PostgresError) -> bool:
    return bool(error.sqlstate) and str(error.sqlstate).startswith("JB")
