"""Enqueue from Python: in the caller's transaction, on whatever connection it has."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest
from pydantic import BaseModel
from support.jobs import live, register, status

import howdah
from howdah import NewJob, enqueuing
from howdah.errors import RefusedError, UniqueKeyHeldError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from conftest import Connect
    from support.cluster import Database


class SyncLikes(BaseModel):
    post: int


@dataclass
class Mail:
    to: str


async def text_codec(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


async def binary_codec(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary",
        encoder=lambda value: b"\x01" + orjson.dumps(value), decoder=lambda data: orjson.loads(data[1:]),
    )  # fmt: skip


async def no_codec(_connection: asyncpg.Connection) -> None:
    pass


@pytest.mark.parametrize("codec", [no_codec, text_codec, binary_codec])
async def test_every_call_works_whatever_codec_the_application_has_set(
    database: Database, codec: Callable[[asyncpg.Connection], Awaitable[None]]
) -> None:
    async with asyncpg.create_pool(database.url, min_size=1, max_size=1, init=codec) as pool, pool.acquire() as mine:
        one = await howdah.enqueue(mine, "work", SyncLikes(post=1), headers={"trace": "t"})
        alike = await howdah.enqueue_many(mine, [{"kind": "work", "payload": Mail("a@b")}, {"kind": "work"}])
        mixed = await howdah.enqueue_many(mine, [NewJob("work", {"n": 1}), NewJob("work", unique_key="k")])
        stored = await mine.fetch("select id, payload::text as payload from howdah.jobs order by id")
    assert one == (1, True)
    assert [json.loads(row["payload"]) for row in stored] == [{"post": 1}, {"to": "a@b"}, {}, {"n": 1}, {}]
    assert [job.id for job in (one, *alike, *mixed)] == [row["id"] for row in stored]
    assert all(job.created for job in (*alike, *mixed))


async def test_every_argument_arrives(connection: asyncpg.Connection) -> None:
    expires = datetime.now(UTC) + timedelta(days=2)
    first = await howdah.enqueue(connection, "work")
    job = await howdah.enqueue(
        connection, "work", {"a": 1}, queue="mail", priority=7, delay=timedelta(hours=1), max_attempts=9, timeout=2.5,
        unique_key="k", on_conflict="error", subject="s", depends_on=[first.id], expires_at=expires,
        headers={"trace": "t"}, on_failed_dependency="run",
    )  # fmt: skip
    row = await live(connection, job.id)
    assert row is not None
    names = ("queue", "priority", "max_attempts", "timeout", "unique_key", "subject", "depends_on", "expires_at",
             "headers", "payload", "state")  # fmt: skip
    assert [row[name] for name in names] == [
        "mail", 7, 9, timedelta(seconds=2.5), "k", "s", [first.id], expires, {"trace": "t"}, {"a": 1}, "waiting",
    ]  # fmt: skip
    later = await howdah.enqueue(connection, "work", run_at=expires)
    assert (await status(connection, later.id))["due_at"] == expires


async def test_new_job_has_exactly_the_arguments_of_the_function_in_sql(connection: asyncpg.Connection) -> None:
    names = await connection.fetchval(
        """select array_agg(a.name) from pg_proc p, unnest(p.proargnames, p.proargmodes) a(name, mode)
        where p.pronamespace = 'howdah'::regnamespace and p.proname = 'enqueue' and a.mode = 'i'"""
    )
    assert set(names) == set(NewJob.__slots__)


async def test_a_rolled_back_transaction_enqueues_nothing(connection: asyncpg.Connection, connect: Connect) -> None:
    async def fill() -> None:
        await howdah.enqueue(connection, "work")
        await howdah.enqueue_many(connection, [NewJob("work"), NewJob("work", unique_key="k")])
        await howdah.enqueue_payloads(connection, "work", [{}, {}])

    other = await connect()
    transaction = connection.transaction()
    await transaction.start()
    await fill()
    assert await other.fetchval("select count(*) from howdah.jobs") == 0
    await transaction.rollback()
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    async with connection.transaction():
        await fill()
    assert await other.fetchval("select count(*) from howdah.jobs") == 5


async def test_a_unique_key_gives_the_id_that_is_there(connection: asyncpg.Connection) -> None:
    first = await howdah.enqueue(connection, "work", unique_key="k")
    again = await howdah.enqueue(connection, "work", unique_key="k")
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(UniqueKeyHeldError, match="'k'") as caught:
        await howdah.enqueue(connection, "work", unique_key="k", on_conflict="error")
    assert caught.value.sqlstate == "JB005"
    assert "skip" in caught.value.hint


async def test_a_refusal_of_the_server_spoils_the_transaction_and_a_savepoint_saves_it(
    connection: asyncpg.Connection,
) -> None:
    async with connection.transaction():
        await howdah.enqueue(connection, "work")
        with pytest.raises(RefusedError, match="priority is 99"):
            async with connection.transaction():
                await howdah.enqueue(connection, "work", priority=99)
        await howdah.enqueue(connection, "work")
    assert await connection.fetchval("select count(*) from howdah.jobs") == 2
    transaction = connection.transaction()
    await transaction.start()
    with pytest.raises(RefusedError):
        await howdah.enqueue(connection, "work", priority=99)
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await howdah.enqueue(connection, "work")
    await transaction.rollback()


async def test_a_character_that_postgresql_cannot_keep_is_a_refusal(connection: asyncpg.Connection) -> None:
    with pytest.raises(RefusedError, match="u0000"):
        await howdah.enqueue(connection, "work", {"a": "\0"})


# -- many -------------------------------------------------------------------------------------------------------------


def some(count: int) -> Iterator[dict[str, Any]]:
    return ({"kind": "work", "payload": {"n": n}} for n in range(count))


async def payloads_of(connection: asyncpg.Connection, jobs: list[howdah.Enqueued]) -> list[int]:
    rows = await connection.fetch("select id, (payload ->> 'n')::int as n from howdah.jobs")
    numbers = {row["id"]: row["n"] for row in rows}
    return [numbers[job.id] for job in jobs]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueuing, "CHUNK", 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("odd", [{}, {"priority": 3}, {"unique_key": "k"}, {"depends_on": [1]}])
async def test_ids_come_in_the_order_of_the_jobs_over_all_chunks(
    connection: asyncpg.Connection, odd: dict[str, Any]
) -> None:
    await howdah.enqueue(connection, "work", {"n": -1})
    given = [job | (odd if job["payload"]["n"] in {3, 17, 30} and "unique_key" not in odd else {}) for job in some(35)]
    for place, job in enumerate(given):
        if "unique_key" in odd and place % 3 == 0:
            job["unique_key"] = f"key {100 - place}"
    jobs = await howdah.enqueue_many(connection, iter(given))
    assert await payloads_of(connection, jobs) == list(range(35))


@pytest.mark.usefixtures("small_chunks")
async def test_jobs_that_agree_go_the_fast_way_and_others_do_not(connection: asyncpg.Connection) -> None:
    asked: list[str] = []
    with connection.query_logger(lambda query: asked.append(query.query)):
        await howdah.enqueue_many(connection, itertools.chain(some(20), [{"kind": "work"}, {"kind": "other"}]))
    calls = [("payloads" if "enqueue_payloads" in sql else "many") for sql in asked if "enqueue" in sql]
    assert calls == ["payloads", "payloads", "many"]


@pytest.mark.usefixtures("small_chunks")
async def test_all_chunks_are_one_transaction_and_the_place_is_the_callers(connection: asyncpg.Connection) -> None:
    for wrong, place in (({"kind": "work", "payload": [1]}, 24), ({"kind": "work", "priority": 99}, 24)):
        with pytest.raises(RefusedError, match=f"job {place}: "):
            await howdah.enqueue_many(connection, itertools.chain(some(23), [wrong], some(3)))
    with pytest.raises(RefusedError, match="job 24: payload is not JSON"):
        await howdah.enqueue_payloads(connection, "work", [*({} for _ in range(23)), {"a": object()}])
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0


async def test_a_chunk_is_bounded_in_bytes(connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueuing, "CHUNK_BYTES", 1000)
    asked: list[str] = []
    with connection.query_logger(lambda query: asked.append(query.query)):
        ids = await howdah.enqueue_payloads(connection, "work", ({"text": "x" * 400} for _ in range(6)))
    assert len([sql for sql in asked if "enqueue_payloads" in sql]) == 2
    assert len(ids) == 6


@pytest.mark.usefixtures("small_chunks")
async def test_callers_with_the_same_keys_in_another_order_do_not_deadlock(connect: Connect) -> None:
    keys = [f"key {n}" for n in range(300)]

    async def fill(order: list[str]) -> list[howdah.Enqueued]:
        return await howdah.enqueue_many(await connect(), [NewJob("work", {"n": 0}, unique_key=key) for key in order])

    first, second = await asyncio.wait_for(asyncio.gather(fill(keys), fill(keys[::-1])), 20)
    assert [job.id for job in first] == [job.id for job in second[::-1]]
    assert sum(job.created for job in (*first, *second)) == 300


async def test_no_jobs_are_no_trouble(connection: asyncpg.Connection) -> None:
    assert await howdah.enqueue_many(connection, []) == []
    assert await howdah.enqueue_payloads(connection, "work", []) == []


@pytest.mark.parametrize(
    ("given", "naming"),
    [({"unique_key": "k"}, "unique_key"), ({"priority": "high"}, "priority"), ({"colour": "red"}, "colour")],
)
async def test_payloads_cannot_have_what_only_single_jobs_can(
    connection: asyncpg.Connection, given: dict[str, Any], naming: str
) -> None:
    with pytest.raises(RefusedError, match=naming):
        await howdah.enqueue_payloads(connection, "work", [{}], **given)


async def test_a_field_of_a_registered_kind_is_refused_by_name(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work", "fields": {"text": {"types": ["string"], "required": True}}})
    with pytest.raises(RefusedError, match="'text'") as caught:
        await howdah.enqueue(connection, "work", {"text": 5})
    assert caught.value.sqlstate == "JB003"


async def test_a_batch_runs_behind_its_members(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await howdah.create_batch(connection, "finish", {"of": 2}, subject="s")
        members = await howdah.enqueue_payloads(connection, "work", [{}, {}], batch=batch)
        await howdah.enqueue_many(connection, [NewJob("work", batch=batch), NewJob("other", batch=batch)])
    assert (await status(connection, batch))["state"] == "waiting"
    assert await connection.fetchval("select count(*) from howdah.jobs where batch = $1", batch) == len(members) + 2
