"""Facts about jobs that tests wait for, read from the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.eventually import aeventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from support.figures import Figures


async def has_ended(connection: asyncpg.Connection, *jobs: int) -> bool:
    """Tell whether these jobs are in history."""
    ended: int = await connection.fetchval("select count(*) from howdah.job_history where id = any ($1)", jobs)
    return ended == len(jobs)


async def end_of(connection: asyncpg.Connection, job: int, timeout: float = 10.0) -> asyncpg.Record:  # noqa: ASYNC109
    """Wait until a job has ended, and give what everybody may read of it."""
    await aeventually(lambda: has_ended(connection, job), timeout)
    [row] = await connection.fetch("select * from howdah.job_status where id = $1", job)
    return row


async def is_empty(connection: asyncpg.Connection) -> bool:
    """Tell whether no job is live."""
    return not await connection.fetchval("select exists (select from howdah.jobs)")


async def state_of(connection: asyncpg.Connection, job: int) -> str:
    state: str = await connection.fetchval("select state from howdah.job_status where id = $1", job)
    return state


async def running(connection: asyncpg.Connection) -> int:
    """Count the jobs whose start the tests' own handlers have written into `public.runs`, and no end."""
    count: int = await connection.fetchval("select count(*) from public.runs where ended_at is null")
    return count


async def sleeps(connection: asyncpg.Connection) -> bool:
    """Tell whether all workers have said that they sleep."""
    return bool(await connection.fetchval("select bool_and(sleeps) from howdah.workers"))


async def outcomes(connection: asyncpg.Connection) -> dict[str, int]:
    """Count history by state."""
    return dict(await connection.fetch("select state, count(*) from howdah.job_history group by 1"))


async def count_ends(connection: asyncpg.Connection, figures: Figures) -> None:
    """Count all jobs, and those among them that have no end or more than one, where no Checker does."""
    row = await connection.fetchrow(
        """select count(*) as jobs, count(*) filter (where ends = 0) as endless, count(*) filter (where ends > 1) as twice
        from (select id, count(finished_at) as ends from howdah.job_status group by id) each"""
    )
    figures.jobs += row["jobs"]
    figures.lost += row["endless"] + row["twice"]


async def each_ended_once(connection: asyncpg.Connection, jobs: Sequence[int]) -> bool:
    """Tell whether history has each of these jobs exactly once, completed, and nothing else, and none is live."""
    rows = await connection.fetch("select id, state from howdah.job_history")
    return (
        sorted(row["id"] for row in rows) == sorted(jobs)
        and all(row["state"] == "completed" for row in rows)
        and await is_empty(connection)
    )


async def make_runs(connection: asyncpg.Connection) -> None:
    """Make the table into which RECORD's handlers write."""
    await connection.execute(
        """create table public.runs (id bigint generated always as identity, job bigint, attempt int, pid int, queue text,
        started_at timestamptz not null default clock_timestamp(), ended_at timestamptz)"""
    )


async def runs(connection: asyncpg.Connection, *columns: str) -> list[Any]:
    """Give what the handlers wrote, in order of their starts; one column: its values."""
    rows = await connection.fetch(f"select {', '.join(columns)} from public.runs order by started_at, id")
    return [row[0] if len(columns) == 1 else tuple(row) for row in rows]


#: A handler that writes when it runs, each write committed at once and by the database's clock, on connections of its own.
RECORD = """
_pool = None
_opening = asyncio.Lock()

async def pool():
    global _pool
    async with _opening:
        if _pool is None:
            _pool = await asyncpg.create_pool(os.environ["HOWDAH_DATABASE_URL"], min_size=1, max_size=4)
    return _pool

async def begin(job):
    return await (await pool()).fetchval(
        "insert into public.runs (job, attempt, pid, queue) values ($1, $2, $3, $4) returning id",
        job.id, job.attempt, os.getpid(), job.queue)

async def end(run):
    await (await pool()).execute("update public.runs set ended_at = clock_timestamp() where id = $1", run)

@handler("record")
async def record(job: Job) -> None:
    run = await begin(job)
    await asyncio.sleep(job.payload.get("seconds", 0))
    await end(run)
"""
