"""Many jobs of one kind in one call: ids in order, and every refusal of enqueue_many, naming the place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import add_worker, live, refused, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from conftest import Connect

STRING = {"types": ["string"], "required": True}


async def enqueue_payloads(
    connection: asyncpg.Connection, payloads: Sequence[Any], kind: str | None = "work", **given: Any
) -> list[int]:
    arguments = {"kind": kind, "payloads": list(payloads), **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    rows = await connection.fetch(f"select howdah.enqueue_payloads({places}) as id", *arguments.values())
    return [row["id"] for row in rows]


async def test_ids_come_in_the_order_of_the_payloads_and_rise(connection: asyncpg.Connection) -> None:
    ids = await enqueue_payloads(connection, [{"n": n} for n in range(5000)])
    assert ids == sorted(ids)
    rows = await connection.fetch("select id, payload from howdah.jobs order by id")
    assert [(row["id"], row["payload"]["n"]) for row in rows] == list(zip(ids, range(5000), strict=True))


async def test_every_job_has_what_was_given_for_all(connection: asyncpg.Connection) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    [_, second] = await enqueue_payloads(
        connection, [{}, {"a": 1}], queue="mail", priority=7, delay=timedelta(hours=1), max_attempts=9,
        timeout=timedelta(seconds=5), subject="s", expires_at=expires, headers={"trace": "t"},
    )  # fmt: skip
    job = await live(connection, second)
    assert job is not None
    given = ("queue", "priority", "max_attempts", "timeout", "subject", "expires_at", "headers", "payload", "state")
    assert [job[name] for name in given] == [
        "mail", 7, 9, timedelta(seconds=5), "s", expires, {"trace": "t"}, {"a": 1}, "scheduled",
    ]  # fmt: skip
    assert job["due_at"] == job["ready_at"] > job["created_at"] + timedelta(minutes=59)


async def test_null_means_the_registered_default_of_the_kind(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work", "queue": "q", "priority": 4, "max_attempts": 8, "timeout": 2})
    [job_id] = await enqueue_payloads(connection, [{}])
    job = await live(connection, job_id)
    assert job is not None
    assert (job["queue"], job["priority"], job["max_attempts"]) == ("q", 4, 8)
    assert (job["timeout"], job["due_at"]) == (timedelta(seconds=2), None)


async def test_no_payloads_make_no_jobs(connection: asyncpg.Connection) -> None:
    assert await enqueue_payloads(connection, []) == []


@pytest.mark.parametrize(
    ("wrong", "sqlstate", "naming"),
    [
        ("text", "JB001", "job 3: payload must be a JSON object, not string"),
        (None, "JB001", "job 3: payload must be a JSON object, not null"),
        ({"text": "x" * 1024 * 1024}, "JB001", "job 3: payload has"),
        ({}, "JB003", "job 3: work: field 'text' is missing"),
        ({"text": 5}, "JB003", "job 3: work: field 'text' must be string, not number"),
    ],
)
async def test_one_wrong_payload_refuses_all_and_its_place_is_named(
    connection: asyncpg.Connection, wrong: Any, sqlstate: str, naming: str
) -> None:
    await register(connection, {"name": "work", "fields": {"text": STRING}})
    good = {"text": "fine"}
    with refused(sqlstate, naming=naming):
        await enqueue_payloads(connection, [good, good, wrong, good])
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0


async def test_a_short_payload_that_is_long_as_text_is_refused(connection: asyncpg.Connection) -> None:
    """A number of a hundred thousand digits has a few bytes in the table, and all of them on the wire."""
    with refused("JB001", naming="job 1: payload has"):
        await connection.fetch(
            "select howdah.enqueue_payloads('work', array[(select jsonb_object_agg(i, 1e130000) from generate_series(1, 9) i)])"
        )


async def test_nothing_under_the_size_that_is_looked_at_can_be_too_long(connection: asyncpg.Connection) -> None:
    """The widest text that fits in 128 bytes: eight of the longest numbers have no room there, and seven are short enough."""
    sizes = await connection.fetch(
        """select pg_column_size(p) as bytes, octet_length(p::text) as text
        from generate_series(1, 10) n, lateral (select jsonb_agg(9e131071) as a from generate_series(1, n)) a,
        lateral (select jsonb_build_object('', a) as p) p"""
    )
    assert all(row["text"] <= 1048576 for row in sizes if row["bytes"] <= 128), sizes


@pytest.mark.parametrize(
    ("given", "sqlstate", "naming"),
    [
        ({"kind": None}, "JB002", "kind"),
        ({"priority": 11}, "JB002", "priority is 11"),
        ({"max_attempts": 0}, "JB002", "max_attempts is 0"),
        ({"queue": ""}, "JB002", "queue"),
        ({"delay": timedelta(1), "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "JB002", "run_at and delay"),
        ({"headers": [1]}, "JB002", "headers"),
        ({"batch": 12345}, "JB007", "batch 12345"),
    ],
)
async def test_a_wrong_argument_is_refused_even_without_payloads(
    connection: asyncpg.Connection, given: dict[str, Any], sqlstate: str, naming: str
) -> None:
    with refused(sqlstate, naming=naming):
        await enqueue_payloads(connection, [], **given)


async def test_payloads_that_are_null_are_refused(connection: asyncpg.Connection) -> None:
    with refused("JB001", naming="payloads must be an array"):
        await connection.fetch("select howdah.enqueue_payloads('work', null)")


async def test_strict_kinds_refuse_an_unknown_one_and_else_one_notice_says_so(
    connection: asyncpg.Connection,
) -> None:
    notices: list[str] = []
    connection.add_log_listener(lambda _, message: notices.append(str(message)))
    await enqueue_payloads(connection, [{}, {}, {}])
    assert len(notices) == 1
    await connection.execute("update howdah.settings set strict_kinds = true")
    with refused("JB004", naming="'work'"):
        await enqueue_payloads(connection, [{}])


async def test_a_sleeping_worker_is_woken(connection: asyncpg.Connection, connect: Connect) -> None:
    words: list[tuple[str, str]] = []
    listener = await connect()
    for channel in ("howdah", "howdah_control"):
        await listener.add_listener(channel, lambda _c, _p, heard, word: words.append((heard, word)))
    await add_worker(connection, queues=["mail"])
    await enqueue_payloads(connection, [{}], queue="mail")
    await connection.execute("update howdah.workers set sleeps = true")
    await enqueue_payloads(connection, [{}], queue="mail")
    await enqueue_payloads(connection, [{}], delay=timedelta(seconds=5))
    await listener.execute("select 1")
    assert words == [("howdah", "mail"), ("howdah_control", "due")]


async def test_members_join_an_open_batch(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await connection.fetchval("select howdah.create_batch('finish')")
        ids = await enqueue_payloads(connection, [{}, {}], batch=batch)
    assert await connection.fetchval("select array_agg(id order by id) from howdah.jobs where batch = $1", batch) == ids


async def test_it_is_idle_when_nothing_of_that_name_lives(connection: asyncpg.Connection) -> None:
    async def idle(**given: str) -> bool:
        row = await connection.fetchval(
            "select howdah.is_idle(a.subject, a.kind, a.queue) from jsonb_to_record($1::text::jsonb) a(subject text, kind text, queue text)",
            json.dumps(given),
        )
        return bool(row)

    assert await idle()
    await enqueue_payloads(connection, [{}], subject="a", queue="mail", delay=timedelta(hours=1))
    await connection.execute("select howdah.enqueue_coalesced('event', '{}', 'k', '1 hour', subject => 'e')")
    busy = ({}, {"subject": "a"}, {"kind": "work"}, {"queue": "mail"}, {"subject": "a", "queue": "mail"},
            {"kind": "event"}, {"subject": "e"}, {"queue": "default"})  # fmt: skip
    quiet = ({"subject": "b"}, {"kind": "other"}, {"queue": "slow"}, {"subject": "a", "queue": "default"},
             {"subject": "e", "kind": "work"})  # fmt: skip
    for given in busy:
        assert not await idle(**given), given
    for given in quiet:
        assert await idle(**given), given
