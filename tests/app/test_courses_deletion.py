"""Courses that are deleted at any moment of their jobs' lives: no deadlock, nothing dead, nothing left."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import asyncpg
import pytest
from support.commands import cli
from support.courses import STORY, Shelf, add_text, documents_of, jobs_of, new_course, start
from support.eventually import aeventually

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from conftest import StartApp

    from howdah.testing.databases import Database

pytestmark = pytest.mark.faults

DOCUMENTS, AT_ONCE = 3, 4


@pytest.mark.parametrize("runs", [6, pytest.param(100, marks=pytest.mark.long)])
async def test_deletions_under_running_jobs_neither_deadlock_nor_leave_anything_dead(
    runs: int, database: Database, app_daemon: StartApp, tmp_path: Path
) -> None:
    shelf, random = Shelf(tmp_path / "files"), Random(runs)  # noqa: S311
    await app_daemon("courses", app_storage_url=shelf.url)
    ended: dict[str, int] = {}
    turns = asyncio.Semaphore(AT_ONCE)
    async with asyncpg.create_pool(database.url, min_size=4 * AT_ONCE, max_size=4 * AT_ONCE) as pool:

        async def run() -> None:
            async with turns:
                course = await live_and_delete(pool, shelf, random.randrange(2 * DOCUMENTS), random.uniform(0, 0.03))
                said = await cli("wait", "--subject", f"course:{course}", "--timeout", "60", url=database)
                assert said.code == 0, said.err
            async with pool.acquire() as connection:
                assert await documents_of(connection, course) == []
                for job in await jobs_of(connection, course):
                    assert job["errors"] is None, job["errors"]
                    assert job["state"] in {"completed", "cancelled"}, job
                    assert job["cancel_reason"] in {None, f"course {course} is gone"}
                    ended[job["state"]] = ended.get(job["state"], 0) + 1

        async with asyncio.TaskGroup() as group:
            for _ in range(runs):
                group.create_task(run())
        deadlocks = await pool.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    assert deadlocks == 0
    # Some were deleted before, some in the midst of it: otherwise this has shown nothing.
    assert min(ended.get("completed", 0), ended.get("cancelled", 0)) > runs, ended


async def live_and_delete(pool: asyncpg.Pool, shelf: Shelf, ended: int, seconds: float) -> UUID:
    """Start a course, tell its progress and start it again from all sides, and delete it when so many jobs have ended."""
    async with pool.acquire() as connection:
        course = await new_course(connection)
        for _ in range(DOCUMENTS):
            await add_text(connection, shelf, course, f"# Elephants\n\n{STORY[0]}")
        await start(connection, course)

    async def tell(who: int) -> None:
        """Tell how far it is until it is gone."""
        for step in range(10_000):
            await asyncio.sleep(0.01)
            query = "select app.update_course_progress($1, $2, 'in_progress') ->> 'success'"
            if await pool.fetchval(query, course, f"{who}: {step % 5}") == "false":
                return

    async def restart() -> None:
        """Add documents and start again until it is gone."""
        async with pool.acquire() as connection:
            try:
                for _ in range(10_000):
                    await asyncio.sleep(0.05)
                    await add_text(connection, shelf, course, f"# Late\n\n{STORY[1]}")
                    await start(connection, course)
            except (asyncpg.ForeignKeyViolationError, asyncpg.NoDataFoundError):
                return

    async def delete() -> None:
        query = "select count(*) from howdah.job_history where subject = $1"
        await aeventually(lambda: reached(pool, query, course, ended), timeout=60)
        await asyncio.sleep(seconds)
        await pool.execute("delete from app.courses where id = $1", course)

    async with asyncio.TaskGroup() as group:
        for task in (tell(1), tell(2), restart(), delete()):
            group.create_task(task)
    return course


async def reached(pool: asyncpg.Pool, query: str, course: UUID, wanted: int) -> bool:
    ended: int = await pool.fetchval(query, f"course:{course}")
    return ended >= wanted
