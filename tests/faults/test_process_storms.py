"""Handlers that make more and more work of nothing: others' jobs still start, and nothing is tried more often than it may be."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

STORMS = (
    JOURNAL
    + """
@handler("fails", max_attempts=3, backoff=lambda attempt: 0.0)
async def fails(job: Job) -> None:
    await quick_journal(job, "start")
    raise ValueError("at once")

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


@pytest.mark.fault(
    "Process",
    "1,000 jobs fail at once again and again, with no backoff",
    "others start meanwhile; attempts stay within their maximum",
)
async def test_a_thousand_jobs_that_fail_at_once_with_no_backoff_keep_nobody_waiting(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(STORMS, queues="default:10,other:2")
    await enqueue_many(connection, *[{"kind": "fails"}] * 1000)
    figures.recovered(await longest_wait(connection))
    figures.faults += 1000
    ends = await connection.fetch(
        "select state, attempt, count(*) from howdah.job_history where kind = 'fails' group by 1, 2"
    )
    assert [tuple(row) for row in ends] == [("dead", 3, 1000)]
    assert (
        await connection.fetchval(
            "select count(*) from public.journal j join howdah.job_history h on h.id = j.job_id where kind = 'fails'"
        )
        == 3000
    )
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process", "each job enqueues two of itself, a thousand in the end", "others start meanwhile; each is there once"
)
async def test_jobs_that_double_themselves_keep_nobody_waiting_and_come_exactly_once(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(STORMS, queues="default:10,other:2")
    await enqueue(connection, "splits", {"depth": 9})
    figures.recovered(await longest_wait(connection))
    figures.faults += 1
    ends = await connection.fetch(
        """select payload ->> 'depth' as depth, count(*) as jobs from howdah.job_history
        where kind = 'splits' and state = 'completed' and attempt = 1 group by 1 order by 1 desc"""
    )
    assert [row["jobs"] for row in ends] == [2**depth for depth in range(10)]
    await checker.check(figures=figures)


async def longest_wait(connection: asyncpg.Connection) -> float:
    """Enqueue jobs of another kind, into this queue and another, until the storm is over; gives the longest wait of any of them."""
    probes: list[int] = []
    rounds = 0
    while await connection.fetchval("select exists (select from howdah.jobs where kind in ('fails', 'splits'))"):
        probes += [await enqueue(connection, "innocent", queue=queue) for queue in ("default", "other")]
        rounds += 1
        await asyncio.sleep(0.1)
    await aeventually(lambda: is_empty(connection), 20)
    waits = await connection.fetchval(
        "select extract(epoch from max(started_at - created_at))::float8 from howdah.job_history where id = any ($1)",
        probes,
    )
    assert rounds > 3, "there was no storm"
    assert waits < PATIENCE
    return float(waits)
