"""Limits and FIFO keys in SQL: what may be claimed, and what comes back."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import LEASES, Held, ack, completed, enqueue, refused, released, retried

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg


async def set_limit(connection: asyncpg.Connection, name: str, **given: Any) -> None:
    places = "".join(f", {argument} => ${place}" for place, argument in enumerate(given, start=2))
    await connection.execute(f"select howdah.set_limit($1{places})", name, *given.values())


async def take(
    connection: asyncpg.Connection,
    count: int = 100,
    *,
    worker: int = 1,
    kinds: Sequence[str] = ("work",),
    queue: str = "default",
) -> list[Held]:
    """Claim limited jobs."""
    lease = secrets.randbelow(LEASES)
    rows = await connection.fetch(
        "select * from howdah.claim_limited($1, $2, $3, $4, $5)", worker, lease, list(kinds), [queue], [count]
    )
    return sorted((Held(row["id"], lease, row) for row in rows if row["id"] is not None), key=lambda held: held.id)


async def test_a_key_never_has_more_than_its_limit(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=2)
    jobs = [await enqueue(connection, limits=["api"]) for _ in range(5)]
    first = await take(connection)
    assert [held.id for held in first] == jobs[:2]
    assert await take(connection) == []
    assert await ack(connection, completed(first[0])) == {jobs[0]}
    assert [held.id for held in await take(connection)] == jobs[2:3]


async def test_fifo(connection: asyncpg.Connection) -> None:
    jobs = [await enqueue(connection, fifo_key="k", priority=n) for n in range(3)]
    [first] = await take(connection)
    assert first.id == jobs[0]
    await ack(connection, retried(first, delay=3600))
    assert await take(connection) == []
