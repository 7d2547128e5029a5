"""How much lies where: exact while that is cheap, near enough beyond, and at the same price however much there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import claim

if TYPE_CHECKING:
    import asyncpg

Counts = dict[tuple[str, str], int]


async def fill(connection: asyncpg.Connection, count: int, **given: Any) -> None:
    await connection.execute(
        """insert into howdah.jobs (queue, kind, priority, due_at, attempt, ready_at)
        select $2, 'work', $3, clock_timestamp() + $4::float8 * interval '1 second', $5, clock_timestamp() - interval '1 minute'
        from generate_series(1, $1)""",
        count,
        given.get("queue", "default"),
        given.get("priority", 0),
        given.get("due_in"),
        given.get("attempt", 0),
    )


async def depth(connection: asyncpg.Connection, count: int = 5000, pages: int = 500) -> Counts:
    rows = await connection.fetch("select * from howdah.depth($1, $2)", count, pages)
    return {(row["queue"], row["state"]): row["jobs"] for row in rows}


async def truth(connection: asyncpg.Connection) -> Counts:
    rows = await connection.fetch("select queue, state, count(*) as jobs from howdah.jobs group by 1, 2")
    return {(row["queue"], row["state"]): row["jobs"] for row in rows}


async def test_small_counts_are_exact_in_every_state_queue_and_priority(connection: asyncpg.Connection) -> None:
    assert await depth(connection) == {}
    await fill(connection, 30)
    await fill(connection, 20, priority=10)
    await fill(connection, 7, queue="mail", priority=5)
    await fill(connection, 5, due_in=3600)
    await fill(connection, 4, due_in=3600, attempt=1, queue="mail")
    await connection.execute("update howdah.jobs set due_at = 'infinity' where id in (select max(id) from howdah.jobs)")
    await claim(connection, count=11)
    await connection.execute("update howdah.jobs set suspect = true where id = (select min(id) from howdah.jobs)")
    found = await truth(connection)
    assert found["default", "running"] == 11
    assert found["mail", "waiting"] == 1
    assert await depth(connection) == found
    oldest = await connection.fetchval("select oldest from howdah.depth() where queue = 'mail' and state = 'ready'")
    assert oldest == pytest.approx(60, abs=30)


async def test_large_counts_are_estimated_from_few_pages_within_a_tenth(connection: asyncpg.Connection) -> None:
    await fill(connection, 40_000)
    await fill(connection, 10_000, due_in=3600)
    await fill(connection, 30, queue="mail")
    await claim(connection, count=100)
    found = await depth(connection, count=3000, pages=200)
    exact = await connection.fetch("select queue, state from howdah.depth(3000, 200) where exact")
    # What stands first in its lane is counted, not guessed.
    assert {tuple(row) for row in exact} == {("mail", "ready"), ("default", "running")}
    assert found["mail", "ready"] == 30
    assert found["default", "running"] == 100
    assert found["default", "ready"] == pytest.approx(39_900, rel=0.1)
    assert found["default", "scheduled"] == pytest.approx(10_000, rel=0.1)


async def test_a_full_look_at_a_small_table_is_exact_however_low_the_bound(connection: asyncpg.Connection) -> None:
    await fill(connection, 2000)
    await claim(connection, count=700)
    assert await depth(connection, count=500, pages=500) == await truth(connection)


async def test_the_oldest_of_a_starved_priority_is_seen_behind_a_long_queue(connection: asyncpg.Connection) -> None:
    await fill(connection, 3000, priority=5)
    await fill(connection, 1)
    await connection.execute("update howdah.jobs set ready_at = ready_at - interval '1 hour' where priority = 0")
    oldest = await connection.fetchval("select oldest from howdah.depth(200, 20) where state = 'ready'")
    assert oldest > 3600
