"""What lives from the start on is out of the garbage collector's sight, in a process that is the worker's own."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from support.facts import end_of
from support.jobs import enqueue

from howdah import Job, handler
from howdah.garbage import YOUNG
from howdah.testing import run_until_empty

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

COLLECTOR = """
import gc
{settings}
@handler("work")
async def work(job: Job) -> dict:
    return {{"frozen": gc.get_freeze_count(), "thresholds": gc.get_threshold()}}
"""


@pytest.mark.parametrize(
    ("settings", "young"),
    [("", YOUNG), ("gc.set_threshold(100_000, 5, 5)", 100_000), ("gc.disable()", YOUNG), ("gc.set_threshold(0)", 0)],
)
async def test_a_worker_spares_what_stays_and_respects_who_looks_more_seldom(
    settings: str, young: int, daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(COLLECTOR.format(settings=settings))
    seen = (await end_of(connection, await enqueue(connection, "work")))["result"]
    assert seen["frozen"] > 10_000
    assert seen["thresholds"][0] == young


@handler("collected.nothing")
async def nothing(_job: Job[dict[str, object]]) -> None:
    """Do nothing."""


async def test_a_worker_in_somebody_elses_process_leaves_its_collector_alone(
    database: Database, connection: asyncpg.Connection
) -> None:
    before = gc.get_freeze_count(), gc.get_threshold()
    await enqueue(connection, "collected.nothing")
    assert (await run_until_empty(database, [nothing])).processed == 1
    assert (gc.get_freeze_count(), gc.get_threshold()) == before
