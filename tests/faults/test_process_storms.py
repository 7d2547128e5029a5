"""Handlers that make more and more work of nothing: others' jobs still start, and nothing is tried more often than it may be."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

log = logging.getLogger("figures")

STORMS = (
    JOURNAL
    + """
@handler("fails", max_attempts=3, backoff=lambda attempt: 0.0)
async def fails(job: Job) -> None:
    await quick_journal(job, "start")
    raise ValueError("at once")

@handler("probe")
async def probe(job: Job) -> None: ...

@handler("splits")
async def splits(job: Job) -> None:
    await quick_journal(job, "start")
    if job.payload["depth"]:
        for _ in range(2):
            await job.enqueue("splits", {"depth": job.payload["depth"] - 1})
    await quick_journal(job, "end")
"""
)

#: How long a job of somebody else's may wait for its start in the middle of it, in seconds, on a machine that does other things as well.
PATIENCE = 15.0


def storm(size: int, fault: str, promise: str, *more: pytest.MarkDecorator) -> Any:
    return pytest.param(size, marks=[pytest.mark.fault("Process", fault, promise), *more], id=str(size))


STARTED = "others' jobs start meanwhile; attempts stay within their maximum"
ONCE = "others' jobs start meanwhile; each is there once"


@pytest.mark.parametrize(
    "jobs",
    [
        storm(200, "200 jobs fail at once, again and again, with no backoff", STARTED),
        storm(1000, "1,000 jobs fail at once, again and again, with no backoff", STARTED, pytest.mark.long),
    ],
)
async def test_jobs_that_fail_at_once_with_no_backoff_keep_nobody_waiting(
    jobs: int, daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(STORMS, queues="default:10,other:2")
    await enqueue_many(connection, *[{"kind": "fails"}] * jobs)
    figures.recovered(await longest_wait(connection))
    figures.faults += 3 * jobs
    ends = await connection.fetch(
        "select state, attempt, count(*) from howdah.job_history where kind = 'fails' group by 1, 2"
    )
    assert [tuple(row) for row in ends] == [("dead", 3, jobs)]
    tried = "select count(*) from public.journal j join howdah.job_history h on h.id = j.job_id where kind = 'fails'"
    assert await connection.fetchval(tried) == 3 * jobs
    await checker.check(figures=figures)


@pytest.mark.parametrize(
    "depth",
    [
        storm(7, "each job enqueues two of itself, to two hundred", ONCE),
        storm(9, "each job enqueues two of itself, to a thousand", ONCE, pytest.mark.long),
    ],
)
async def test_jobs_that_double_themselves_keep_nobody_waiting_and_come_exactly_once(
    depth: int, daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(STORMS, queues="default:10,other:2")
    await enqueue(connection, "splits", {"depth": depth})
    figures.recovered(await longest_wait(connection))
    figures.faults += 1
    ends = await connection.fetch(
        """select payload ->> 'depth' as depth, count(*) as jobs from howdah.job_history
        where kind = 'splits' and state = 'completed' and attempt = 1 group by 1 order by 1 desc"""
    )
    assert [row["jobs"] for row in ends] == [2**place for place in range(depth + 1)]
    await checker.check(figures=figures)


async def longest_wait(connection: asyncpg.Connection) -> float:
    """Enqueue jobs of another kind, into this queue and another, until the storm is over; gives the longest wait of any of them."""
    probes: list[int] = []
    rounds = 0
    while await connection.fetchval("select exists (select from howdah.jobs where kind in ('fails', 'splits'))"):
        probes += [await enqueue(connection, "probe", queue=queue) for queue in ("default", "other")]
        rounds += 1
        await asyncio.sleep(0.01)
    await aeventually(lambda: is_empty(connection), 20)
    rows = await connection.fetch(
        """select queue, extract(epoch from max(started_at - created_at))::float8 as longest from howdah.job_history
        where id = any ($1) group by queue""",
        probes,
    )
    waits = {row["queue"]: row["longest"] for row in rows}
    log.warning("longest waits beside the storm, in seconds: %s", waits)
    assert rounds > 3, "there was no storm"
    assert max(waits.values()) < PATIENCE
    return float(max(waits.values()))
