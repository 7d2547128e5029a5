"""What a role or a database has been given as its defaults does not reach the engine's own connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

HANDLERS = """
@handler("work")
async def work(job: Job) -> Any:
    await asyncio.sleep(0.01)
    return job.payload
"""


@pytest.mark.fault(
    "Server",
    "statement_timeout, lock_timeout and isolation set for the database",
    "they do not reach the engine's connections",
)
async def test_short_timeouts_and_another_isolation_by_default_are_no_harm_to_the_engine(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    for setting in (
        "default_transaction_isolation = 'repeatable read'",
        "statement_timeout = '20ms'",
        "lock_timeout = '1ms'",
        "idle_session_timeout = '100ms'",
    ):
        await connection.execute(f"alter database {database.name} set {setting}")
        figures.faults += 1
    worker = await daemon(HANDLERS)
    await connection.execute("set default_transaction_isolation = 'read committed'")
    async with connection.transaction():  # a batch that is committed empty is over
        batch = await connection.fetchval("select howdah.create_batch('work')")
        await enqueue_many(connection, *({"kind": "work", "batch": batch} for _ in range(200)))
    first = await enqueue(connection)
    second = await enqueue(connection, depends_on=[first])
    assert (await end_of(connection, second))["state"] == "completed"
    assert (await end_of(connection, batch))["state"] == "completed"
    await aeventually(lambda: is_empty(connection))
    reconnects = {name: value for name, value in (await worker.metrics()).items() if "reconnects_total" in name}
    assert sum(reconnects.values()) == 0, reconnects
    assert await connection.fetchval("select bool_and(state = 'completed') from howdah.job_history")
    figures.jobs = await connection.fetchval("select count(*) from howdah.job_history")
    assert await worker.stop() == 0
