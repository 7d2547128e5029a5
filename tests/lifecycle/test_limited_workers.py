"""Limits over several real workers, judged from what handlers wrote by the database's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import RECORD, is_empty, make_runs, runs
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon


async def test_a_concurrency_and_a_rate_hold_over_two_workers(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    await connection.execute(
        "select howdah.set_limit('three', concurrency => 3), howdah.set_limit('slow', rate => 20, burst => 1)"
    )
    await daemon(RECORD, queues="default:10")
    await daemon(RECORD, queues="default:10")
    await enqueue_many(
        connection,
        *[{"kind": "record", "limits": ["three"], "payload": {"seconds": 0.05}} for _ in range(30)],
        *[{"kind": "record", "limits": ["slow"]} for _ in range(20)],
    )
    await aeventually(lambda: is_empty(connection))
    rows = await runs(connection, "job", "started_at", "ended_at", "pid")
    print(*rows, sep="\n")
    assert len(rows) == 50
