"""Enqueue over other drivers: the job is part of their transaction, and a refusal is an error of ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from howdah.adapters import psycopg as over_psycopg
from howdah.adapters import sqlalchemy as over_sqlalchemy
from howdah.errors import RefusedError, UniqueKeyHeldError

if TYPE_CHECKING:
    import asyncpg
    from support.cluster import Database

GIVEN: dict[str, Any] = {
    "priority": 3, "delay": timedelta(hours=1), "timeout": 2.5, "subject": "100% :sure", "unique_key": "k",
    "headers": {"trace": "t"}, "expires_at": datetime(2040, 1, 1, tzinfo=UTC),
}  # fmt: skip


async def jobs(connection: asyncpg.Connection) -> list[Any]:
    rows = await connection.fetch("select payload ->> 'text' as text, subject, timeout from howdah.jobs order by id")
    return [tuple(row) for row in rows]


STORED = [("50% :off", "100% :sure", timedelta(seconds=2.5))]
PAYLOAD = {"text": "50% :off"}


@pytest.fixture
def address(database: Database) -> str:
    return database.url


async def test_psycopg_commits_and_rolls_back_with_the_connection(address: str, connection: asyncpg.Connection) -> None:
    with psycopg.connect(address, row_factory=dict_row) as mine:
        over_psycopg.enqueue(mine, "work", PAYLOAD, **GIVEN)
        mine.rollback()
        assert await jobs(connection) == []
        job = over_psycopg.enqueue(mine, "work", PAYLOAD, **GIVEN)
        assert await jobs(connection) == []
        mine.commit()
        assert await jobs(connection) == STORED
        assert over_psycopg.enqueue(mine, "work", **GIVEN) == (job.id, False)
        with pytest.raises(UniqueKeyHeldError, match="'k'") as caught:
            over_psycopg.enqueue(mine, "work", unique_key="k", on_conflict="error")
        assert "skip" in caught.value.hint


async def test_asynchronous_psycopg_does_the_same(address: str, connection: asyncpg.Connection) -> None:
    async with await psycopg.AsyncConnection.connect(address) as mine:
        await over_psycopg.enqueue_async(mine, "work", PAYLOAD, **GIVEN)
        await mine.rollback()
        assert (await over_psycopg.enqueue_async(mine, "work", PAYLOAD, **GIVEN)).created
        assert await jobs(connection) == []
        await mine.commit()
        assert await jobs(connection) == STORED
        with pytest.raises(RefusedError, match="priority is 99"):
            await over_psycopg.enqueue_async(mine, "work", priority=99)


async def test_sqlalchemy_commits_and_rolls_back_with_connection_and_session(
    address: str, connection: asyncpg.Connection
) -> None:
    engine = sqlalchemy.create_engine(address.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with Session(engine) as session:
            over_sqlalchemy.enqueue(session, "work", PAYLOAD, **GIVEN)
            session.rollback()
        with engine.connect() as mine:
            over_sqlalchemy.enqueue(mine, "work", PAYLOAD, **GIVEN)
        assert await jobs(connection) == []
        with Session(engine) as session:
            job = over_sqlalchemy.enqueue(session, "work", PAYLOAD, **GIVEN)
            assert await jobs(connection) == []
            session.commit()
            assert await jobs(connection) == STORED
            assert over_sqlalchemy.enqueue(session, "work", unique_key="k") == (job.id, False)
            with pytest.raises(UniqueKeyHeldError, match="'k'") as caught:
                over_sqlalchemy.enqueue(session, "work", unique_key="k", on_conflict="error")
            assert "skip" in caught.value.hint
    finally:
        engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_asynchronous_sqlalchemy_does_the_same(address: str, connection: asyncpg.Connection, driver: str) -> None:
    engine = create_async_engine(address.replace("postgresql://", f"postgresql+{driver}://"))
    try:
        async with AsyncSession(engine) as session:
            await over_sqlalchemy.enqueue_async(session, "work", PAYLOAD, **GIVEN)
            await session.rollback()
            assert await jobs(connection) == []
            assert (await over_sqlalchemy.enqueue_async(session, "work", PAYLOAD, **GIVEN)).created
            assert await jobs(connection) == []
            await session.commit()
            assert await jobs(connection) == STORED
        async with engine.begin() as mine:
            assert not (await over_sqlalchemy.enqueue_async(mine, "work", unique_key="k")).created
            with pytest.raises(UniqueKeyHeldError, match="'k'") as caught:
                await over_sqlalchemy.enqueue_async(mine, "work", unique_key="k", on_conflict="error")
            assert "skip" in caught.value.hint
    finally:
        await engine.dispose()
