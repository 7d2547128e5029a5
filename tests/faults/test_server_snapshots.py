"""Nothing is cleared away behind the jobs: somebody holds a snapshot for the whole run, or autovacuum is off."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import is_empty, outcomes
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect, StartDaemon
    from support.figures import Figures

log = logging.getLogger("figures")

#: Jobs in all, and those of which the buffers are counted at the beginning and at the end.
JOBS, TENTH, BATCH = 40_000, 4_000, 1_000
#: How many times as many buffers a job may cost at the end as at the beginning.
GROWTH = 2.0


@pytest.mark.long
@pytest.mark.parametrize(
    "held",
    [
        pytest.param(
            True,
            marks=pytest.mark.fault(
                "Server",
                "a snapshot held open for the whole run",
                "the last tenth of the claims reads no more than twice the first's",
            ),
        ),
        pytest.param(
            False,
            marks=pytest.mark.fault(
                "Server", "autovacuum is off", "the last tenth of the claims reads no more than twice the first's"
            ),
        ),
    ],
    ids=["snapshot", "no-autovacuum"],
)
async def test_claims_cost_the_same_at_the_end_as_at_the_beginning_though_nothing_is_cleared_away(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, figures: Figures, *, held: bool
) -> None:
    await connection.execute("alter table howdah.jobs set (autovacuum_enabled = off)")
    if held:
        holder = await connect()
        await holder.execute("begin isolation level repeatable read; select from howdah.jobs")
    worker = await daemon(queues="default:50")
    await run(connection, TENTH)  # plans are made, and the table has its size
    first = await buffers_of(connection, TENTH)
    await run(connection, JOBS - 3 * TENTH)
    last = await buffers_of(connection, TENTH)
    log.warning(
        "%s: %.0f buffers a job in the first tenth, %.0f in the last",
        "snapshot" if held else "no autovacuum",
        first,
        last,
    )
    assert last < GROWTH * first
    figures.faults = 1
    figures.jobs = JOBS
    assert await outcomes(connection) == {"completed": JOBS}
    assert await worker.stop() == 0


async def run(connection: asyncpg.Connection, count: int) -> None:
    """Bring jobs and see them through."""
    for _ in range(0, count, BATCH):
        await enqueue_many(connection, *[{"kind": "work"}] * BATCH)
        await aeventually(lambda: is_empty(connection), timeout=30)


async def buffers_of(connection: asyncpg.Connection, count: int) -> float:
    """Give how many buffers of the table of jobs a job costs."""
    before = await settled(connection)
    await run(connection, count)
    return (await settled(connection) - before) / count


async def settled(connection: asyncpg.Connection) -> int:
    """Give what all sessions have told of; they tell with a delay of a second or so."""
    last = -1

    async def same_again() -> bool:
        nonlocal last
        await connection.execute("select pg_stat_clear_snapshot()")
        read: int = await connection.fetchval(
            "select heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit from pg_statio_all_tables where relid = 'howdah.jobs'::regclass"
        )
        # An idle worker looks now and then, which is little beside what a thousand jobs read.
        last, before = read, last
        return read - before < 1000

    await aeventually(same_again, interval=1.5)
    return last
