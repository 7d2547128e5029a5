"""Work that needs every connection of a worker, and what is asked of it while a wire is broken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from support.checker import JOURNAL
from support.eventually import aeventually
from support.facts import has_ended, is_empty
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from support.cluster import Database
    from support.figures import Figures

#: The connections of a worker, by their names on the wire.
CONNECTIONS = ("claim", "limited", "ack", "chain", "spare", "step", "count", "beat", "ask", "listen", "handler")


def handlers(database: Database) -> str:
    """Give handlers of every sort, whose journal has a wire of its own."""
    journal = JOURNAL.replace('os.environ["HOWDAH_DATABASE_URL"]', repr(database.url)).replace(
        '@handler("effect", transaction=True)',
        '@handler("effect", transaction=True, timeout=1, max_attempts=50, backoff=lambda attempt: 0.05)',
    )
    return (
        journal
        + """
@handler("chained")
async def chained(job: Job) -> None:
    await quick_journal(job, "start")
    await job.enqueue("innocent")
    await quick_journal(job, "end")

@handler("stepped", max_attempts=50, backoff=lambda attempt: 0.05)
async def stepped(job: Job) -> Any:
    await quick_journal(job, "start")
    async def once() -> int:
        return job.attempt
    kept = await job.step("once", once)
    await quick_journal(job, "end")
    return kept

@handler("once", max_attempts=1)
async def once(job: Job) -> None:
    await innocent(job)
"""
    )


def mix(size: int = 1) -> list[dict[str, Any]]:
    """Give jobs that need every connection: to be claimed, limited, begun, made ready, kept in steps, chained and acked."""
    return [
        *({"kind": "innocent"} for _ in range(10 * size)),
        *({"kind": "innocent", "payload": {"seconds": 0.05}} for _ in range(3 * size)),
        *({"kind": "innocent", "limits": ["pair"]} for _ in range(2 * size)),
        *({"kind": "innocent", "delay": 0.1} for _ in range(2 * size)),
        *({"kind": "effect"} for _ in range(3 * size)),
        *({"kind": "chained"} for _ in range(2 * size)),
        *({"kind": "stepped"} for _ in range(2 * size)),
        *({"kind": "once"} for _ in range(size)),
    ]


async def work_through(
    connection: asyncpg.Connection, figures: Figures, within: float, jobs: list[dict[str, Any]] | None = None
) -> float:
    """Enqueue work and wait until all of it has ended, within so many seconds; gives how many it took."""
    began = time.monotonic()
    ids = [row["id"] for row in await enqueue_many(connection, *(jobs or mix()))]
    await aeventually(lambda: has_ended(connection, *ids), timeout=within)
    await aeventually(lambda: is_empty(connection), timeout=within)  # and what they brought along
    took = time.monotonic() - began
    figures.recovered(took)
    return took
