"""How work comes in: what enqueue and enqueue_many promise to every caller."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.jobs import (
    ack,
    add_worker,
    claim,
    claim_one,
    completed,
    enqueue,
    enqueue_coalesced,
    enqueue_many,
    enqueued,
    live,
    refused,
    register,
    released,
    waits_for_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg
    from conftest import Connect

MIB = 1024 * 1024
STRING = {"types": ["string"], "required": True}


async def count_jobs(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("select count(*) from howdah.jobs")
    return count


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


# -- defaults ---------------------------------------------------------------------------------------------------------


async def test_what_is_left_out_is_three_attempts_queue_default_priority_zero(connection: asyncpg.Connection) -> None:
    row = await connection.fetchrow("select * from howdah.enqueue('work')")
    job = await live(connection, row["id"])
    assert row["created"] is True
    assert job is not None
    assert (job["queue"], job["max_attempts"], job["priority"], job["timeout"]) == ("default", 3, 0, None)
    assert (job["payload"], job["state"], job["attempt"], job["due_at"]) == ({}, "ready", 0, None)


async def test_null_means_the_registered_default_of_the_kind(connection: asyncpg.Connection) -> None:
    await register(
        connection, {"name": "mail", "queue": "post", "priority": 7, "max_attempts": 9, "timeout": 2.5, "fields": {}}
    )
    job = await live(connection, await enqueue(connection, "mail", queue=None, priority=None, max_attempts=None))
    assert job is not None
    assert (job["queue"], job["priority"], job["max_attempts"]) == ("post", 7, 9)
    assert job["timeout"] == timedelta(seconds=2.5)


async def test_what_is_given_stands_above_the_registered_default(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "mail", "queue": "post", "priority": 7, "max_attempts": 9, "timeout": 2.5})
    given = {"queue": "q", "priority": 0, "max_attempts": 1, "timeout": timedelta(seconds=9)}
    job = await live(connection, await enqueue(connection, "mail", **given))
    assert job is not None
    assert {name: job[name] for name in given} == given


async def test_every_argument_lands_in_its_column(connection: asyncpg.Connection) -> None:
    given = {
        "subject": "course:42",
        "headers": {"trace": "abc"},
        "unique_key": "k",
        "expires_at": in_an_hour(),
        "run_at": in_an_hour(),
    }
    job = await live(connection, await enqueue(connection, payload={"a": [1, None, "ü"]}, **given))
    assert job is not None
    assert {name: job[name] for name in given if name != "run_at"} == {
        name: value for name, value in given.items() if name != "run_at"
    }
    assert job["payload"] == {"a": [1, None, "ü"]}
    assert (job["due_at"], job["ready_at"], job["state"]) == (given["run_at"], given["run_at"], "scheduled")


async def test_a_delay_is_counted_from_now(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, delay=timedelta(hours=1))
    row = await connection.fetchrow("select due_at - created_at as delay, state from howdah.jobs where id = $1", job_id)
    assert timedelta(minutes=59) < row["delay"] <= timedelta(hours=1)
    assert row["state"] == "scheduled"


@pytest.mark.parametrize(
    "when", [{"run_at": datetime(2020, 1, 1, tzinfo=UTC)}, {"delay": timedelta()}, {"delay": timedelta(seconds=-5)}]
)
async def test_a_time_that_has_passed_means_now(connection: asyncpg.Connection, when: dict[str, Any]) -> None:
    job = await live(connection, await enqueue(connection, **when))
    assert job is not None
    assert (job["due_at"], job["state"]) == (None, "ready")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "naming", "given"),
    [
        ("JB002", "kind is NULL", {"kind": None}),
        ("JB002", "kind is ''", {"kind": ""}),
        ("JB002", "kind", {"kind": "k" * 101}),
        ("JB002", "kind", {"kind": "two\nlines"}),
        ("JB001", "payload must be a JSON object, not array", {"payload": []}),
        ("JB001", "payload must be a JSON object, not number", {"payload": 1}),
        ("JB001", "payload must be a JSON object, not null", {"payload": None}),
        ("JB001", "payload has", {"payload": {"big": "x" * MIB}}),
        ("JB002", "queue is ''", {"queue": ""}),
        ("JB002", "queue", {"queue": "q" * 101}),
        ("JB002", "priority is 11", {"priority": 11}),
        ("JB002", "priority is -1", {"priority": -1}),
        ("JB002", "run_at and delay", {"run_at": in_an_hour(), "delay": timedelta(seconds=1)}),
        ("JB002", "max_attempts is 0", {"max_attempts": 0}),
        ("JB002", "max_attempts is 1001", {"max_attempts": 1001}),
        ("JB002", "timeout is", {"timeout": timedelta()}),
        ("JB002", "on_conflict is 'maybe'", {"on_conflict": "maybe"}),
        ("JB002", "on_conflict is NULL", {"on_conflict": None}),
        ("JB002", "unique_key has 0", {"unique_key": ""}),
        ("JB002", "unique_key has 501", {"unique_key": "k" * 501}),
        ("JB002", "subject has 0", {"subject": ""}),
        ("JB002", "subject has 501", {"subject": "s" * 501}),
        ("JB002", "headers must be a JSON object, not array", {"headers": []}),
        ("JB007", "depends_on: there is no job 1", {"depends_on": [1]}),
        ("JB002", "depends_on holds a null", {"depends_on": [None]}),
        ("JB002", "depends_on names 1001 jobs", {"depends_on": list(range(1001))}),
        ("JB002", "on_failed_dependency is 'hope'", {"on_failed_dependency": "hope"}),
        ("JB007", "batch 1 is over, or was never opened", {"batch": 1}),
        ("JB002", "limits is {queue:mail}", {"limits": ["queue:mail"]}),
        ("JB002", "fifo_key is ''", {"fifo_key": ""}),
    ],
)
async def test_bad_input_is_refused_by_name_and_leaves_nothing(
    connection: asyncpg.Connection, sqlstate: str, naming: str, given: dict[str, Any]
) -> None:
    arguments = {"kind": "work", "payload": {}, **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    with refused(sqlstate, naming=naming):
        await connection.execute(f"select howdah.enqueue({places})", *arguments.values())
    await register(connection, {"name": "work"})
    with refused(sqlstate, naming=naming):
        await connection.execute(f"select howdah.enqueue({places})", *arguments.values())
    assert await count_jobs(connection) == 0


@pytest.mark.parametrize("field", ["run_at", "expires_at"])
@pytest.mark.parametrize("value", ["infinity", "-infinity"])
async def test_a_time_that_never_comes_is_refused(connection: asyncpg.Connection, field: str, value: str) -> None:
    with refused("JB002", naming=f"{field} is {value}"):
        await connection.execute(f"select howdah.enqueue('work', {field} => '{value}')")


async def test_a_delay_without_end_is_refused(connection: asyncpg.Connection) -> None:
    if connection.get_server_version() < (17,):
        pytest.skip("an interval is always finite before PostgreSQL 17")
    with refused("JB002", naming="delay is infinity"):
        await connection.execute("select howdah.enqueue('work', delay => 'infinity')")
    with refused("JB002", naming="delay is infinity"):
        await connection.execute("select howdah.enqueue_coalesced('work', key => 'k', delay => 'infinity')")


async def test_a_payload_of_exactly_one_mebibyte_is_taken(connection: asyncpg.Connection) -> None:
    text = "x" * (MIB - len('{"big": ""}'))
    assert await enqueue(connection, payload={"big": text})
    with refused("JB001", naming=f"payload has {MIB + 1} bytes"):
        await enqueue(connection, payload={"big": text + "x"})


async def test_a_large_payload_is_refused_however_well_it_compresses(connection: asyncpg.Connection) -> None:
    await connection.execute("create table source (payload jsonb)")
    await connection.execute("insert into source values (jsonb_build_object('big', repeat('x', $1)))", 5 * MIB)
    stored = await connection.fetchval("select pg_column_size(payload) from source")
    assert stored < MIB
    await register(connection, {"name": "known"})
    for kind in ("work", "known"):
        with refused("JB001", naming="payload has"):
            await connection.execute(f"select howdah.enqueue('{kind}', payload) from source")
    with refused("JB001", naming="payload has"):
        await connection.execute("select howdah.enqueue_coalesced('work', payload, 'k') from source")


async def test_a_few_compressed_bytes_that_are_long_as_text_are_refused(connection: asyncpg.Connection) -> None:
    await connection.execute("create table source (payload jsonb)")
    await connection.execute(
        "insert into source select jsonb_build_object('n', jsonb_agg(1e131071)) from generate_series(1, 200)"
    )
    assert await connection.fetchval("select pg_column_size(payload) from source") <= 128
    await register(connection, {"name": "known"})
    for kind in ("work", "known"):
        with refused("JB001", naming="payload has"):
            await connection.execute(f"select howdah.enqueue('{kind}', payload) from source")


# -- kinds ------------------------------------------------------------------------------------------------------------


async def test_an_unregistered_kind_is_taken_with_a_notice(connection: asyncpg.Connection) -> None:
    heard = listen_to(connection)
    assert await enqueue(connection, "wrok")
    await aeventually(lambda: heard == ["howdah: kind 'wrok' was never registered"])


async def test_a_registered_kind_makes_no_noise(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work"})
    heard = listen_to(connection)
    await enqueue(connection)
    await connection.execute("do $$ begin raise notice 'the end'; end $$")
    await aeventually(lambda: heard == ["the end"])


async def test_strict_kinds_refuses_a_kind_that_was_never_registered(connection: asyncpg.Connection) -> None:
    await connection.execute("update howdah.settings set strict_kinds = true")
    with refused("JB004", naming="'wrok'"):
        await enqueue(connection, "wrok")
    with refused("JB004", naming="'wrok'"):
        await enqueue_coalesced(connection, "wrok")
    with refused("JB004", naming="job 1: kind 'wrok'"):
        await enqueue_many(connection, {"kind": "wrok"})
    await register(connection, {"name": "wrok"})
    assert await enqueue(connection, "wrok")


@pytest.mark.parametrize(
    ("payload", "naming"),
    [
        ({}, "sync: field 'post_id' is missing"),
        ({"post_id": 3}, "sync: field 'post_id' must be string, not number"),
        ({"post_id": None}, "sync: field 'post_id' must be string, not null"),
        ({"post_id": "p", "depth": "deep"}, "sync: field 'depth' must be number or null, not string"),
    ],
)
async def test_a_field_that_does_not_fit_its_kind_is_refused_by_name(
    connection: asyncpg.Connection, payload: dict[str, Any], naming: str
) -> None:
    await register(
        connection,
        {"name": "sync", "fields": {"post_id": STRING, "depth": {"types": ["number", "null"], "required": False}}},
    )
    with refused("JB003", naming=naming):
        await enqueue(connection, "sync", payload)
    with refused("JB003", naming=naming):
        await enqueue_coalesced(connection, "sync", payload)
    with refused("JB003", naming=f"job 2: {naming}"):
        await enqueue_many(
            connection, {"kind": "sync", "payload": {"post_id": "p"}}, {"kind": "sync", "payload": payload}
        )
    assert await count_jobs(connection) == 0
    assert await enqueue(connection, "sync", {"post_id": "p", "depth": None, "more": "is welcome"})


async def test_a_newly_required_field_only_warns_for_ten_minutes(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "sync", "fields": {"post_id": STRING}}, revision=1)
    await register(connection, {"name": "sync", "fields": {"post_id": STRING, "why": STRING}}, revision=2)
    heard = listen_to(connection)
    assert await enqueue(connection, "sync", {"post_id": "p"})
    await aeventually(lambda: heard == ["howdah: sync: field 'why' is missing, which will soon be refused"])

    await connection.execute(
        "update howdah.kinds set fields = jsonb_set(fields, '{why,since}', to_jsonb(now() - interval '11 minutes'))"
    )
    with refused("JB003", naming="field 'why' is missing"):
        await enqueue(connection, "sync", {"post_id": "p"})


async def test_a_field_that_was_always_required_is_refused_at_once(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "sync", "fields": {"post_id": STRING}}, revision=1)
    await register(connection, {"name": "sync", "fields": {"post_id": STRING}}, revision=2)
    with refused("JB003", naming="field 'post_id' is missing"):
        await enqueue(connection, "sync", {})


async def test_registering_again_does_not_begin_the_ten_minutes_anew(connection: asyncpg.Connection) -> None:
    fields = {"post_id": STRING, "why": STRING}
    await register(connection, {"name": "sync", "fields": {"post_id": STRING}}, revision=1)
    await register(connection, {"name": "sync", "fields": fields}, revision=2)
    since = "select fields -> 'why' ->> 'since' from howdah.kinds"
    before = await connection.fetchval(since)
    await register(connection, {"name": "sync", "fields": fields}, revision=2)
    assert before is not None
    assert await connection.fetchval(since) == before


async def test_an_older_revision_never_overwrites_a_newer_one(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "sync", "queue": "new"}, revision=5)
    await register(connection, {"name": "sync", "queue": "old"}, {"name": "other", "queue": "old"}, revision=4)
    rows = await connection.fetch("select name, queue, revision from howdah.kinds order by name")
    assert [tuple(row) for row in rows] == [("other", "old", 4), ("sync", "new", 5)]


# -- unique_key -------------------------------------------------------------------------------------------------------


async def test_skip_gives_the_live_job_and_changes_nothing(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, payload={"n": 1}, unique_key="k")
    second = await enqueued(connection, payload={"n": 2}, unique_key="k", priority=9)
    assert tuple(second) == (first, False)
    job = await live(connection, first)
    assert job is not None
    assert (job["payload"], job["priority"]) == ({"n": 1}, 0)


async def test_replace_gives_a_queued_job_the_new_payload_time_and_priority(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, payload={"n": 1}, unique_key="k")
    later = in_an_hour()
    second = await enqueued(
        connection, payload={"n": 2}, unique_key="k", on_conflict="replace", priority=9, run_at=later
    )
    assert tuple(second) == (first, False)
    job = await live(connection, first)
    assert job is not None
    assert (job["payload"], job["priority"], job["due_at"], job["state"]) == ({"n": 2}, 9, later, "scheduled")


async def test_replace_leaves_a_running_job_alone(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, payload={"n": 1}, unique_key="k")
    await claim_one(connection)
    before = await live(connection, first)
    second = await enqueued(connection, payload={"n": 2}, unique_key="k", on_conflict="replace", priority=9)
    assert tuple(second) == (first, False)
    assert await live(connection, first) == before


async def test_error_raises(connection: asyncpg.Connection) -> None:
    await enqueue(connection, unique_key="k")
    with refused("JB005", naming="unique_key 'k'"):
        await enqueue(connection, unique_key="k", on_conflict="error")
    assert (await enqueued(connection, unique_key="other", on_conflict="error"))["created"] is True


async def test_a_running_job_holds_its_key_and_an_ended_one_frees_it(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, unique_key="k")
    held = await claim_one(connection)
    assert tuple(await enqueued(connection, unique_key="k")) == (first, False)
    await ack(connection, completed(held))
    second = await enqueued(connection, unique_key="k")
    assert second["created"] is True
    assert second["id"] != first


async def test_no_key_is_no_conflict(connection: asyncpg.Connection) -> None:
    assert await enqueue(connection) != await enqueue(connection)


async def test_a_second_transaction_waits_for_the_first_and_gets_its_job(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    transaction = connection.transaction()
    await transaction.start()
    first = await enqueue(connection, unique_key="k")
    waiting = asyncio.create_task(enqueued(other, unique_key="k"))
    await until_it_waits(connect, other)
    await transaction.commit()
    assert tuple(await waiting) == (first, False)


async def test_a_second_transaction_makes_the_job_when_the_first_rolls_back(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    transaction = connection.transaction()
    await transaction.start()
    first = await enqueue(connection, unique_key="k")
    waiting = asyncio.create_task(enqueued(other, unique_key="k"))
    await until_it_waits(connect, other)
    await transaction.rollback()
    second = await waiting
    assert second["created"] is True
    assert await live(connection, first) is None
    assert await count_jobs(connection) == 1


async def test_a_second_transaction_makes_the_job_when_the_holder_of_the_key_ends(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    first = await enqueue(connection, unique_key="k")
    held = await claim_one(connection)
    transaction = connection.transaction()
    await transaction.start()
    await ack(connection, completed(held))
    waiting = asyncio.create_task(enqueued(other, unique_key="k"))
    await until_it_waits(connect, other)
    await transaction.commit()
    second = await waiting
    assert second["created"] is True
    assert second["id"] != first


async def test_a_job_that_ends_between_meeting_it_and_looking_at_it_is_made_anew(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """A trigger stops the caller between its insert, which meets the key's holder, and the look at that holder."""
    first = await enqueue(connection, unique_key="k")
    held = await claim_one(connection)
    await connection.execute(
        """create function stop() returns trigger language plpgsql as
        'begin perform pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1); return null; end';
        create trigger stop after insert on howdah.jobs for each statement execute function stop()"""
    )
    other = await connect()
    await connection.execute("select pg_advisory_lock(1)")
    waiting = asyncio.create_task(enqueued(other, unique_key="k"))
    await until_it_waits(connect, other)
    await ack(connection, completed(held))
    await connection.execute("select pg_advisory_unlock(1)")
    second = await waiting
    assert second["created"] is True
    assert await live(connection, second["id"]) is not None
    assert second["id"] != first


@pytest.mark.parametrize("locked_first", [False, True])
async def test_a_replace_that_loses_the_race_with_a_claim_leaves_the_job_alone(
    connection: asyncpg.Connection, connect: Connect, *, locked_first: bool
) -> None:
    """The claim is not committed when the insert meets the job; or only its lock is there, and the update meets it."""
    replacer = await connect()
    first = await enqueue(connection, payload={"n": 1}, unique_key="k")
    transaction = connection.transaction()
    await transaction.start()
    if locked_first:
        await connection.execute("select from howdah.jobs for update")
    else:
        await claim_one(connection)
    replacing = asyncio.create_task(enqueued(replacer, payload={"n": 2}, unique_key="k", on_conflict="replace"))
    await until_it_waits(connect, replacer)
    if locked_first:
        await claim_one(connection)
    await transaction.commit()
    assert tuple(await replacing) == (first, False)
    job = await live(connection, first)
    assert job is not None
    assert (job["payload"], job["state"], job["attempt"]) == ({"n": 1}, "running", 1)


async def test_a_claim_passes_over_a_job_that_is_being_replaced(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    claimer = await connect()
    first = await enqueue(connection, payload={"n": 1}, unique_key="k")
    async with connection.transaction():
        await enqueue(connection, payload={"n": 2}, unique_key="k", on_conflict="replace")
        assert await claim(claimer) == []
    held = await claim_one(claimer)
    assert (held.id, held.row["payload"]) == (first, {"n": 2})


async def test_replace_gives_a_job_its_attempts_back(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, unique_key="k", max_attempts=2)
    held = await claim_one(connection)
    await ack(connection, released(held))
    await connection.execute("update howdah.jobs set attempt = 2")
    await enqueue(connection, unique_key="k", on_conflict="replace", max_attempts=1)
    job = await live(connection, first)
    assert job is not None
    assert (job["attempt"], job["max_attempts"]) == (0, 1)


async def test_a_rolled_back_caller_leaves_nothing(connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await enqueue(connection, unique_key="k")
    await enqueue_many(connection, {"kind": "work"}, {"kind": "work", "unique_key": "l"})
    await enqueue_coalesced(connection)
    await transaction.rollback()
    assert await count_jobs(connection) == 0
    assert await connection.fetchval("select count(*) from howdah.events") == 0


# -- wakes ------------------------------------------------------------------------------------------------------------


async def test_enqueue_wakes_only_a_worker_that_sleeps_on_that_queue(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    heard: list[str] = []
    listener = await connect()
    await listener.add_listener("howdah", lambda *event: heard.append(event[3]))
    await add_worker(connection, queues=["a", "b"])
    await enqueue(connection, queue="a")
    await connection.execute("update howdah.workers set sleeps = true")
    await enqueue(connection, queue="c")
    await enqueue(connection, queue="b")
    await connection.execute("select pg_notify('howdah', 'the end')")
    await aeventually(lambda: "the end" in heard)
    assert heard == ["b", "the end"]


async def test_a_replaced_job_wakes_the_queue_that_it_is_in(connection: asyncpg.Connection, connect: Connect) -> None:
    heard: list[str] = []
    await enqueue(connection, queue="a", unique_key="k", delay=timedelta(hours=1))
    listener = await connect()
    await listener.add_listener("howdah", lambda *event: heard.append(event[3]))
    await add_worker(connection, queues=["a", "b"])
    await connection.execute("update howdah.workers set sleeps = true")
    await enqueue(connection, queue="b", unique_key="k", on_conflict="replace")
    await connection.execute("select pg_notify('howdah', 'the end')")
    await aeventually(lambda: "the end" in heard)
    assert heard == ["a", "the end"]


async def test_the_earliest_due_job_sets_the_alarm(connection: asyncpg.Connection, connect: Connect) -> None:
    heard: list[str] = []
    listener = await connect()
    await listener.add_listener("howdah_control", lambda *event: heard.append(event[3]))
    await enqueue(connection, delay=timedelta(minutes=5))
    await enqueue(connection, delay=timedelta(minutes=9))
    await enqueue(connection, delay=timedelta(minutes=1))
    await connection.execute("select pg_notify('howdah_control', 'the end')")
    await aeventually(lambda: "the end" in heard)
    assert heard == ["due", "due", "the end"]


async def test_a_plain_job_calls_nothing_that_it_did_not_ask_for(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work"})
    await connection.execute("set track_functions = 'pl'")
    async with connection.transaction():
        await enqueue(connection)
        called = await connection.fetch("select funcname from pg_stat_xact_user_functions where schemaname = 'howdah'")
    assert {row["funcname"] for row in called} == {"enqueue", "wake"}


# -- enqueue_many -----------------------------------------------------------------------------------------------------


async def test_many_jobs_come_back_in_the_order_of_the_array(connection: asyncpg.Connection) -> None:
    rows = await enqueue_many(connection, *({"kind": "work", "payload": {"n": n}} for n in range(1, 51)))
    assert [row["ordinal"] for row in rows] == list(range(1, 51))
    assert all(row["created"] for row in rows)
    ids = [row["id"] for row in rows]
    assert ids == sorted(set(ids))
    jobs = await connection.fetch("select payload from howdah.jobs order by id")
    assert [job["payload"]["n"] for job in jobs] == list(range(1, 51))


async def test_jobs_with_different_arguments_may_be_mixed(connection: asyncpg.Connection) -> None:
    """What is read once for all jobs that say the same goes to those, and to no other."""
    await register(
        connection, {"name": "typed", "queue": "home", "fields": {"n": {"types": ["number"], "required": True}}}
    )
    said: list[dict[str, Any]] = [
        {"kind": "work"},
        {"kind": "work", "priority": 3},
        {"kind": "typed"},
        {"kind": "typed", "queue": "away", "subject": "s"},
        {"kind": "work", "priority": 3, "headers": {"h": 1}},
    ]
    rows = await enqueue_many(connection, *({**said[n % 5], "payload": {"n": n}} for n in range(60)))
    jobs = await connection.fetch("select * from howdah.jobs order by id")
    assert [row["id"] for row in rows] == [job["id"] for job in jobs]
    assert [job["payload"]["n"] for job in jobs] == list(range(60))
    for n, job in enumerate(jobs):
        given = said[n % 5]
        home = "home" if given["kind"] == "typed" else "default"
        assert (job["kind"], job["queue"]) == (given["kind"], given.get("queue", home))
        assert (job["priority"], job["subject"]) == (given.get("priority", 0), given.get("subject"))
        assert job["headers"] == given.get("headers")
    with refused("JB003", naming="job 4: typed: field 'n' must be number, not string"):
        await enqueue_many(connection, *({**said[n], "payload": {"n": n if n < 3 else "x"}} for n in range(4)))


async def test_a_payload_that_is_null_or_left_out_is_empty(connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, {"kind": "work", "payload": None}, {"kind": "work"})
    assert [job["payload"] for job in await connection.fetch("select payload from howdah.jobs")] == [{}, {}]


async def test_keyed_and_unkeyed_jobs_may_be_mixed(connection: asyncpg.Connection) -> None:
    there = await enqueue(connection, payload={"n": 0}, unique_key="there")
    rows = await enqueue_many(
        connection,
        {"kind": "work", "payload": {"n": 1}, "unique_key": "z"},
        {"kind": "work", "payload": {"n": 2}},
        {"kind": "work", "payload": {"n": 3}, "unique_key": "there"},
        {"kind": "work", "payload": {"n": 4}, "unique_key": "a"},
        {"kind": "work", "payload": {"n": 5}, "unique_key": "z"},
        {"kind": "work", "payload": {"n": 6}},
    )
    assert [row["ordinal"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["created"] for row in rows] == [True, True, False, True, False, True]
    ids = [row["id"] for row in rows]
    assert ids[2] == there
    assert ids[4] == ids[0]
    payloads = await connection.fetch("select id, payload ->> 'n' as n from howdah.jobs")
    assert {row["id"]: int(row["n"]) for row in payloads} == {there: 0, ids[0]: 1, ids[1]: 2, ids[3]: 4, ids[5]: 6}


async def test_many_take_every_argument_and_every_default(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "mail", "queue": "post", "priority": 7, "max_attempts": 9, "timeout": 2.5})
    run_at = in_an_hour()
    rows = await enqueue_many(
        connection,
        {"kind": "mail"},
        {
            "kind": "mail",
            "queue": "q",
            "priority": 1,
            "max_attempts": 2,
            "timeout": "00:00:09",
            "run_at": run_at.isoformat(),
            "subject": "s",
            "headers": {"h": 1},
            "expires_at": (run_at + timedelta(hours=1)).isoformat(),
        },
        {"kind": "mail", "unique_key": "k", "delay": "1 hour"},
    )
    plain, full, keyed = [await live(connection, row["id"]) for row in rows]
    assert plain is not None
    assert full is not None
    assert keyed is not None
    columns = ("queue", "priority", "max_attempts", "timeout", "subject", "headers", "state")
    default = ("post", 7, 9, timedelta(seconds=2.5), None, None)
    assert tuple(plain[name] for name in columns) == (*default, "ready")
    assert tuple(full[name] for name in columns) == ("q", 1, 2, timedelta(seconds=9), "s", {"h": 1}, "scheduled")
    assert (full["due_at"], full["expires_at"]) == (run_at, run_at + timedelta(hours=1))
    assert tuple(keyed[name] for name in columns) == (*default, "scheduled")


@pytest.mark.parametrize("key", [{}, {"unique_key": "k"}])
@pytest.mark.parametrize(
    ("sqlstate", "naming", "wrong"),
    [
        ("JB002", "job 2: priority is 11", {"priority": 11}),
        ("JB002", "job 2: kind is NULL", {"kind": None}),
        ("JB001", "job 2: payload must be a JSON object, not array", {"payload": []}),
        ("JB001", "job 2: payload has", {"payload": {"big": "x" * MIB}}),
        ("JB002", "job 2: run_at and delay", {"run_at": "2030-01-01T00:00:00Z", "delay": "1s"}),
        ("JB002", "job 2: run_at is infinity", {"run_at": "infinity"}),
        ("JB002", "job 2: expires_at is infinity", {"expires_at": "infinity"}),
        ("JB002", "job 2: on_conflict is 'maybe'", {"on_conflict": "maybe"}),
        ("JB007", "depends_on: there is no job 1", {"depends_on": [1]}),
        ("JB007", "batch 1 is over", {"batch": 1}),
        ("JB002", "job 2: limits is {a*}", {"limits": ["a*"]}),
        ("JB002", "job 2 has an unknown argument 'prioritty'", {"prioritty": 1}),
    ],
)
async def test_one_wrong_job_refuses_all_and_names_its_place(
    connection: asyncpg.Connection, sqlstate: str, naming: str, wrong: dict[str, Any], key: dict[str, str]
) -> None:
    with refused(sqlstate, naming=naming):
        await enqueue_many(connection, {"kind": "work"}, {"kind": "work", **key, **wrong}, {"kind": "work"})
    assert await count_jobs(connection) == 0


async def test_what_is_no_array_of_objects_is_refused(connection: asyncpg.Connection) -> None:
    for jobs in ({"kind": "work"}, None, "work"):
        with refused("JB001", naming="jobs must be a JSON array"):
            await connection.execute("select howdah.enqueue_many($1)", jobs)
    with refused("JB002", naming="job 2 must be a JSON object, not number"):
        await enqueue_many(connection, {"kind": "work"}, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("priority", "high"), ("run_at", "soon"), ("delay", "a while"), ("max_attempts", 10**12), ("timeout", "nothing")],
)
async def test_an_argument_of_the_wrong_type_is_refused_by_name(
    connection: asyncpg.Connection, argument: str, value: Any
) -> None:
    with refused("JB002", naming=f"job 2: {argument} is"):
        await enqueue_many(connection, {"kind": "work"}, {"kind": "work", argument: value})


async def test_none_are_none(connection: asyncpg.Connection) -> None:
    assert await enqueue_many(connection) == []


async def test_two_callers_with_the_same_keys_in_opposite_order_do_not_deadlock(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    keys = [f"k{n:03d}" for n in range(200)]
    forward = [{"kind": "work", "unique_key": key} for key in keys]
    for _ in range(10):
        results = await asyncio.gather(enqueue_many(connection, *forward), enqueue_many(other, *reversed(forward)))
        ids = [{row["id"] for row in rows} for rows in results]
        assert ids[0] == ids[1]
        assert sum(row["created"] for rows in results for row in rows) == len(keys)
        await connection.execute("delete from howdah.jobs")


async def test_keys_are_taken_in_their_own_order_whatever_the_array_says(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """With the first key held by somebody else, no later key of the array may be held while waiting for it."""
    other, third = await connect(), await connect()
    transaction = connection.transaction()
    await transaction.start()
    first = await enqueue(connection, unique_key="a")
    waiting = asyncio.create_task(
        enqueue_many(other, {"kind": "work", "unique_key": "z"}, {"kind": "work", "unique_key": "a"})
    )
    await until_it_waits(connect, other)
    assert (await enqueued(third, unique_key="z"))["created"] is True
    await transaction.commit()
    rows = await waiting
    assert [row["created"] for row in rows] == [False, False]
    assert rows[1]["id"] == first


# -- what the tests above use -----------------------------------------------------------------------------------------


def listen_to(connection: asyncpg.Connection) -> list[str]:
    """Collect what the server says beside its answers."""
    heard: list[str] = []
    hear: Callable[..., None] = lambda _, message: heard.append(message.message)  # noqa: E731
    connection.add_log_listener(hear)
    return heard


async def until_it_waits(connect: Connect, connection: asyncpg.Connection) -> None:
    """Return when `connection` waits for somebody's lock."""
    watcher = await connect()
    await aeventually(lambda: waits_for_lock(watcher, connection.get_server_pid()))
