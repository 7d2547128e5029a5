"""Nothing is cleared away behind the jobs: somebody holds a snapshot for the whole run, or autovacuum is off."""

from __future__ import annotations

import logging
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.facts import is_empty
from support.jobs import Line, ack, add_worker, claim, completed, enqueue_many

from howdah.marks import Marks

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect
    from support.figures import Figures

log = logging.getLogger("figures")

#: Jobs in all; those of one claim; and how many times as many buffers a claim may read in the last tenth as in the first.
JOBS, BATCH, GROWTH = 10_000, 100, 1.5
SAME = "claims of the last tenth read as many buffers as those of the first, within half"


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(True, marks=pytest.mark.fault("Server", "a snapshot is held open for the whole run", SAME)),
        pytest.param(False, marks=pytest.mark.fault("Server", "autovacuum is off", SAME)),
    ],
    ids=["snapshot", "no-autovacuum"],
)
async def test_claims_cost_the_same_at_the_end_as_at_the_beginning_though_nothing_is_cleared_away(
    connection: asyncpg.Connection, connect: Connect, figures: Figures, *, held: bool
) -> None:
    """Looks from the start do cost more, since they come by all that is dead; they have a twentieth of the time, whatever they cost."""
    await connection.execute("alter table howdah.jobs set (autovacuum_enabled = off)")
    if held:
        holder = await connect()
        await holder.execute("begin isolation level repeatable read; select from howdah.jobs")
    worker = await add_worker(connection)
    marks = Marks()
    costs: list[int] = []
    for _ in range(0, JOBS, 10 * BATCH):
        rows = await enqueue_many(connection, *[{"kind": "work", "payload": {"n": 1}}] * (10 * BATCH))
        costs += [await claim_and_ack(connection, worker, marks, newest=rows[-1]["id"]) for _ in range(10)]
    tenth = len(costs) // 10
    first, last = sum(costs[:tenth]) / tenth, sum(costs[-tenth:]) / tenth
    log.warning(
        "%s: %.0f buffers a claim in the first tenth, %.0f in the last",
        "snapshot" if held else "vacuum off",
        first,
        last,
    )
    assert last < GROWTH * first, costs[:: tenth // 2]
    assert await is_empty(connection)
    figures.jobs, figures.faults = JOBS, 1
    figures.lost = JOBS - await connection.fetchval("select count(distinct id) from howdah.job_history")
    assert figures.lost == 0


async def claim_and_ack(connection: asyncpg.Connection, worker: int, marks: Marks, *, newest: int) -> int:
    """Claim a batch from the marks, as a worker does, and complete it; gives the buffers of the table and its indexes that the claim read."""
    rooms = {"default": BATCH}
    began = monotonic()
    async with connection.transaction():
        before = await fetched(connection)
        held = await claim(
            connection, worker, count=BATCH, lines=[Line(*one) for one in marks.stretches(rooms, look=False)]
        )
        cost = await fetched(connection) - before
    jobs: Any = [SimpleNamespace(id=job.id, queue="default", priority=0) for job in held]
    assert len(jobs) == BATCH
    marks.claimed(rooms, jobs, newest, look=False, began=began, ended=monotonic())
    await ack(connection, *(completed(job) for job in held))
    return cost


async def fetched(connection: asyncpg.Connection) -> int:
    count = await connection.fetchval(
        """select pg_stat_get_xact_blocks_fetched('howdah.jobs'::regclass)
          + (select sum(pg_stat_get_xact_blocks_fetched(indexrelid)) from pg_index where indrelid = 'howdah.jobs'::regclass)"""
    )
    return int(count)
