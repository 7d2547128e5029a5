"""A job's way through a worker: claim, ack, complete, promote, coalesce, beat, rescue, partitions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.eventually import aeventually
from support.jobs import (
    Ack,
    Held,
    Line,
    ack,
    add_dead_worker,
    add_worker,
    cancelled,
    claim,
    claim_one,
    claim_suspect,
    completed,
    crashed,
    dead,
    ended,
    enqueue,
    enqueue_coalesced,
    enqueue_many,
    fate,
    live,
    refused,
    register,
    released,
    rescued,
    retried,
    snoozed,
    status,
    waits_for_lock,
    write_start,
)

if TYPE_CHECKING:
    from conftest import Connect

MOST_URGENT, ORDINARY = 0, 10  # ranks: 10 - priority


# -- claim ------------------------------------------------------------------------------------------------------------


async def test_the_most_urgent_is_claimed_first_and_the_oldest_within_a_priority(
    connection: asyncpg.Connection,
) -> None:
    ids = {(priority, n): await enqueue(connection, priority=priority) for n in range(3) for priority in (0, 10, 5)}
    expected = [ids[priority, n] for priority in (10, 5, 0) for n in range(3)]
    assert [job.id for job in await claim(connection, count=4)] == expected[:4]
    assert [job.id for job in await claim(connection, count=100)] == expected[4:]


async def test_a_claim_tells_all_that_a_handler_needs(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection)
    given = {
        "priority": 3,
        "max_attempts": 4,
        "timeout": timedelta(seconds=1.5),
        "subject": "s",
        "headers": {"h": 1},
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
    }
    job_id = await enqueue(connection, payload={"n": 1}, **given)
    job = await claim_one(connection, worker, lease=77)
    row = job.row
    assert {name: row[name] for name in ("priority", "max_attempts", "subject", "headers")} == {
        name: given[name] for name in ("priority", "max_attempts", "subject", "headers")
    }
    assert (row["id"], row["queue"], row["kind"], row["payload"]) == (job_id, "default", "work", {"n": 1})
    assert (row["attempt"], row["crashes"], row["timeout"]) == (1, 0, 1.5)
    assert 0 <= row["waited"] < 60
    assert 3500 < row["expires_in"] <= 3600
    stored = await live(connection, job_id)
    assert stored is not None
    assert (stored["lease"], stored["leased_by"], stored["state"], stored["attempt"]) == (77, worker, "running", 1)
    assert stored["claimed_at"] >= stored["created_at"]
    assert stored["started_at"] is None


async def test_a_claimed_job_is_not_claimed_again(connection: asyncpg.Connection, connect: Connect) -> None:
    await enqueue(connection)
    await claim_one(connection)
    assert await claim(await connect(), worker=2) == []


async def test_two_claims_at_once_share_the_jobs(connection: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    await enqueue_many(connection, *[{"kind": "work"}] * 10)
    async with connection.transaction():
        mine = await claim(connection, count=4)
        theirs = await claim(other, worker=2, count=100)
    assert len(mine) == 4
    assert len(theirs) == 6
    assert not {job.id for job in mine} & {job.id for job in theirs}


async def test_several_queues_are_served_in_one_claim_each_up_to_its_room(connection: asyncpg.Connection) -> None:
    for queue in ("a", "b", "c"):
        await enqueue_many(connection, *[{"kind": "work", "queue": queue}] * 5)
    jobs = await claim(connection, rooms={"a": 2, "b": 3, "c": 0})
    assert sorted(job.row["queue"] for job in jobs) == ["a", "a", "b", "b", "b"]


async def test_the_lines_of_a_queue_share_its_room(connection: asyncpg.Connection) -> None:
    urgent = [await enqueue(connection, priority=10) for _ in range(3)]
    ordinary = [await enqueue(connection, priority=0) for _ in range(3)]
    jobs = await claim(
        connection,
        count=4,
        lines=[Line("default", MOST_URGENT, 0, MOST_URGENT), Line("default", ORDINARY, 0, ORDINARY)],
    )
    assert [job.id for job in jobs] == [*urgent, ordinary[0]]


async def test_a_line_begins_behind_its_mark_and_ends_with_its_rank(connection: asyncpg.Connection) -> None:
    urgent = [await enqueue(connection, priority=10) for _ in range(3)]
    middle = [await enqueue(connection, priority=5) for _ in range(2)]
    ordinary = await enqueue(connection, priority=0)
    from_mark = [Line("default", MOST_URGENT, urgent[1], 5)]
    assert [job.id for job in await claim(connection, lines=from_mark)] == [urgent[2], *middle]
    assert await claim(connection, lines=from_mark) == []
    assert [job.id for job in await claim(connection)] == [urgent[0], urgent[1], ordinary]


async def test_a_line_may_end_at_an_id(connection: asyncpg.Connection) -> None:
    urgent = [await enqueue(connection, priority=10) for _ in range(3)]
    ordinary = [await enqueue(connection) for _ in range(4)]
    to_an_id = [Line("default", MOST_URGENT, 0, ORDINARY, ordinary[1])]
    assert [job.id for job in await claim(connection, lines=to_an_id)] == [*urgent, *ordinary[:2]]
    one_id = [Line("default", ORDINARY, ordinary[3] - 1, ORDINARY, ordinary[3]), Line("default", ORDINARY, ordinary[3])]
    assert [job.id for job in await claim(connection, lines=one_id)] == [ordinary[3]]
    assert [job.id for job in await claim(connection)] == [ordinary[2]]


async def find_behind(connection: asyncpg.Connection, *marks: tuple[str, int, int], most: int = 100) -> list[Any]:
    queues, ranks, pasts = zip(*marks, strict=True)
    found = await connection.fetch(
        "select * from howdah.find_behind('{work}', $1, $2, $3, $4, $5)",
        list(dict.fromkeys(queues)),
        most,
        queues,
        ranks,
        pasts,
    )
    return [tuple(row) for row in found]


async def test_what_lies_behind_marks_is_found_in_claim_order_and_not_taken(connection: asyncpg.Connection) -> None:
    first, second, third = [await enqueue(connection) for _ in range(3)]
    urgent = await enqueue(connection, priority=10)
    other = await enqueue(connection, queue="mail")
    await enqueue(connection, "unknown")
    await enqueue(connection, delay=timedelta(hours=1))
    held = await claim(connection, count=1, lines=[Line("default", ORDINARY, second, ORDINARY)])
    assert [job.id for job in held] == [third]
    newest = await enqueue(connection)
    marks = [("default", MOST_URGENT, urgent), ("default", ORDINARY, newest - 1), ("mail", ORDINARY, newest)]
    everything = [
        ("default", MOST_URGENT, urgent),
        ("default", ORDINARY, first),
        ("default", ORDINARY, second),
        ("mail", ORDINARY, other),
    ]
    assert await find_behind(connection, *marks) == everything
    assert await find_behind(connection, *marks, most=2) == [*everything[:2], everything[3]]
    await connection.execute("select howdah.pause('default')")
    assert await find_behind(connection, *marks) == everything[3:]
    await connection.execute("select howdah.resume('default')")
    assert await find_behind(connection, *marks) == everything


async def test_a_look_behind_marks_sends_what_a_limit_holds_for_to_its_line(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    await connection.execute("insert into howdah.limits (name, concurrency) values ('kind:work', 1)")
    assert await find_behind(connection, ("default", ORDINARY, job)) == []
    assert await connection.fetchval("select gate from howdah.jobs where id = $1", job) == "kind:work"


async def test_overlapping_lines_claim_a_job_once(connection: asyncpg.Connection) -> None:
    ids = [await enqueue(connection) for _ in range(4)]
    jobs = await claim(connection, lines=[Line("default", ORDINARY, ids[1]), Line("default")])
    assert sorted(job.id for job in jobs) == ids
    rows = await connection.fetch("select attempt from howdah.jobs")
    assert [row["attempt"] for row in rows] == [1, 1, 1, 1]


async def test_a_paused_queue_is_left_alone(connection: asyncpg.Connection) -> None:
    await enqueue(connection, queue="a")
    await enqueue(connection, queue="b")
    await connection.execute("insert into howdah.queues (name, paused_at) values ('a', now()), ('b', null)")
    assert [job.row["queue"] for job in await claim(connection, rooms={"a": 9, "b": 9})] == ["b"]
    await connection.execute("update howdah.jobs set suspect = true where queue = 'a'")
    assert await claim_suspect(connection, queues=["a", "b"]) is None
    await connection.execute("update howdah.queues set paused_at = null")
    assert await claim_suspect(connection, queues=["a", "b"]) is not None


async def test_a_kind_without_a_handler_is_never_claimed(connection: asyncpg.Connection) -> None:
    await enqueue(connection, "unknown", priority=10)
    known = await enqueue(connection, "work")
    assert [job.id for job in await claim(connection, count=1, kinds=["work", "other"])] == [known]
    assert await claim(connection, kinds=["work"]) == []
    await connection.execute("update howdah.jobs set suspect = true")
    assert await claim_suspect(connection, kinds=["work"]) is None


async def test_what_is_not_due_is_never_claimed(connection: asyncpg.Connection) -> None:
    await enqueue(connection, delay=timedelta(hours=1))
    await connection.execute("update howdah.jobs set due_at = 'infinity'")
    await enqueue(connection, delay=timedelta(hours=1))
    assert await claim(connection) == []


async def test_a_suspect_is_claimed_alone_and_has_not_started_yet(connection: asyncpg.Connection) -> None:
    first, second = [await suspect(connection) for _ in range(2)]
    ready = await enqueue(connection)
    assert [job.id for job in await claim(connection)] == [ready]
    job = await claim_suspect(connection, worker=7)
    assert job is not None
    assert job.id == first
    stored = await live(connection, first)
    assert stored is not None
    assert stored["started_at"] is None
    assert (stored["leased_by"], stored["attempt"], stored["state"], stored["suspect"]) == (7, 1, "running", True)
    next_one = await claim_suspect(connection)
    assert next_one is not None
    assert next_one.id == second
    assert await claim_suspect(connection) is None


async def test_a_suspect_that_has_run_no_longer_counts_as_started_when_the_next_one_starts(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    ids = [await suspect(connection) for _ in range(3)]
    gone = await add_dead_worker(connection)
    first = await claim_suspect(connection, gone, begun=True)
    assert first is not None
    assert (await live(connection, first.id) or {})["started_at"] is not None
    second = await claim_suspect(connection, gone, begun=True, before=first)
    assert second is not None
    holder = await connect()
    async with holder.transaction():
        # While its row is held, the start cannot be taken back.
        await holder.execute("select from howdah.jobs where id = $1 for update", second.id)
        assert await claim_suspect(connection, gone, begun=True, before=second) is None
    await connection.fetch("select * from howdah.rescue()")
    crashes = {row["id"]: row["crashes"] for row in await connection.fetch("select id, crashes from howdah.jobs")}
    assert crashes == {ids[0]: 0, ids[1]: 1, ids[2]: 0}


async def test_after_a_suspect_that_may_run_at_most_once_none_starts_until_its_end_is_written(
    connection: asyncpg.Connection,
) -> None:
    await enqueue(connection, max_attempts=1)
    await connection.execute("update howdah.jobs set suspect = true")
    await suspect(connection)
    once = await claim_suspect(connection, begun=True)
    assert once is not None
    assert (await live(connection, once.id) or {})["started_at"] is None  # its start is written apart
    await write_start(connection, once)
    assert await claim_suspect(connection, begun=True, before=once) is None
    await ack(connection, completed(once))
    assert await claim_suspect(connection, begun=True, before=once) is not None


async def test_a_claim_passes_over_a_row_that_somebody_holds(connection: asyncpg.Connection, connect: Connect) -> None:
    holder = await connect()
    first, second = await enqueue(connection), await enqueue(connection)
    async with holder.transaction():
        await holder.execute("select from howdah.jobs where id = $1 for update", first)
        assert [job.id for job in await claim(connection)] == [second]
    assert [job.id for job in await claim(connection)] == [first]


# -- ack: what becomes of the job -------------------------------------------------------------------------------------


async def test_completed_moves_the_job_to_history_whole(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection)
    await register(connection, {"name": "work", "timeout": 9})
    given = {"unique_key": "k", "subject": "s", "headers": {"h": 1}, "priority": 4, "max_attempts": 5}
    job_id = await enqueue(connection, payload={"n": 1}, **given)
    job = await claim_one(connection, worker)
    before = await live(connection, job_id)
    assert before is not None
    assert await ack(connection, completed(job, {"likes": 3}, run=0.25)) == {job_id}
    assert await live(connection, job_id) is None
    row = await ended(connection, job_id)
    assert row is not None
    same = "id queue kind payload priority attempt max_attempts crashes lease leased_by unique_key subject headers timeout created_at ready_at claimed_at"
    assert {name: row[name] for name in same.split()} == {name: before[name] for name in same.split()}
    assert (row["state"], row["result"], row["errors"], row["cancelled_by"]) == ("completed", {"likes": 3}, None, None)
    assert row["claimed_at"] <= row["started_at"] <= row["finished_at"]


async def test_a_start_is_counted_back_from_the_end_but_never_before_the_claim(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await connection.execute(
        "update howdah.jobs set created_at = created_at - interval '1 hour', claimed_at = claimed_at - interval '1 minute'"
    )
    before = await connection.fetchval("select clock_timestamp()")
    await ack(connection, completed(job, run=17, age=20))
    after = await connection.fetchval("select clock_timestamp()")
    row = await ended(connection, job_id)
    assert row is not None
    assert before <= row["started_at"] + timedelta(seconds=20) <= after
    assert row["finished_at"] - row["started_at"] == timedelta(seconds=17)

    job_id = await enqueue(connection)
    await ack(connection, completed(await claim_one(connection), run=3600))
    row = await ended(connection, job_id)
    assert row is not None
    assert row["started_at"] == row["claimed_at"]
    assert row["finished_at"] <= datetime.now(UTC)


async def test_a_start_that_was_written_stands(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await write_start(connection, job)
    before = await live(connection, job_id)
    assert before is not None
    await ack(connection, completed(job, run=0))
    row = await ended(connection, job_id)
    assert row is not None
    assert row["started_at"] == before["started_at"]


async def test_dead_keeps_the_error_with_its_attempt_and_time(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, dead(await claim_one(connection), "no such course"))
    row = await ended(connection, job_id)
    assert row is not None
    [error] = row["errors"]
    assert datetime.fromisoformat(error.pop("at")) <= row["finished_at"]
    assert error == {"type": "ValueError", "message": "no such course", "attempt": 1}
    assert (row["state"], row["result"], row["crashes"]) == ("dead", None, 0)
    assert (await status(connection, job_id))["error"] == "no such course"


async def test_a_job_that_died_without_a_start_has_none(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, dead(await claim_one(connection), run=None))
    row = await ended(connection, job_id)
    assert row is not None
    assert row["started_at"] is None


async def test_cancelled_keeps_who_and_why(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, cancelled(await claim_one(connection), "anna", "changed her mind"))
    row = await ended(connection, job_id)
    assert row is not None
    assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == ("cancelled", "anna", "changed her mind")
    assert row["errors"] is None


async def test_crashed_is_dead_with_one_crash_more_and_without_a_lease(connection: asyncpg.Connection) -> None:
    job_id = await suspect(connection, crashes=1)
    job = await claim_suspect(connection)
    assert job is not None
    await ack(connection, crashed(job, "it kills"))
    row = await ended(connection, job_id)
    assert row is not None
    assert (row["state"], row["crashes"], row["lease"]) == ("dead", 2, None)
    assert row["errors"][-1]["message"] == "it kills"


@pytest.mark.parametrize("how", ["retried", "snoozed", "released", "rescued"])
async def test_what_goes_back_is_nobodys_any_more(connection: asyncpg.Connection, how: str) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await write_start(connection, job)
    assert await ack(connection, Ack(job, how, delay=0)) == {job_id}
    row = await live(connection, job_id)
    assert row is not None
    unclaimed = ("lease", "leased_by", "claimed_at", "started_at", "due_at")
    assert [row[name] for name in unclaimed] == [None] * 5
    assert row["state"] == "ready"
    assert row["attempt"] == (1 if how == "retried" else 0)
    assert row["suspect"] is (how == "rescued")
    assert row["crashes"] == 0
    assert await ended(connection, job_id) is None


async def test_retried_comes_back_after_its_delay_with_the_attempt_counted(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, retried(await claim_one(connection), delay=60, message="busy"))
    row = await live(connection, job_id)
    assert row is not None
    assert (row["state"], row["attempt"]) == ("retrying", 1)
    assert timedelta(seconds=55) < row["due_at"] - datetime.now(UTC) <= timedelta(seconds=60)
    assert row["ready_at"] == row["due_at"]
    [error] = row["errors"]
    assert (error["message"], error["attempt"]) == ("busy", 1)
    shown = await status(connection, job_id)
    assert (shown["state"], shown["error"], shown["due_at"]) == ("retrying", "busy", row["due_at"])


async def test_snoozed_comes_back_after_its_delay_with_the_attempt_not_counted(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, snoozed(await claim_one(connection), delay=60))
    row = await live(connection, job_id)
    assert row is not None
    assert (row["state"], row["attempt"], row["errors"]) == ("scheduled", 0, None)
    assert timedelta(seconds=55) < row["due_at"] - datetime.now(UTC) <= timedelta(seconds=60)


async def test_a_released_job_keeps_its_place_and_its_waiting_time(connection: asyncpg.Connection) -> None:
    first, second = await enqueue(connection), await enqueue(connection)
    before = await live(connection, first)
    assert before is not None
    await ack(connection, released(await claim_one(connection, count=1)))
    row = await live(connection, first)
    assert row is not None
    assert row["ready_at"] == before["ready_at"]
    assert [job.id for job in await claim(connection)] == [first, second]


async def test_a_released_suspect_is_still_one_and_a_retried_one_is_cleared(connection: asyncpg.Connection) -> None:
    job_id = await suspect(connection, crashes=1)
    job = await claim_suspect(connection)
    assert job is not None
    await ack(connection, released(job))
    row = await live(connection, job_id)
    assert row is not None
    assert (row["suspect"], row["crashes"], row["attempt"]) == (True, 1, 0)

    job = await claim_suspect(connection)
    assert job is not None
    await ack(connection, retried(job))
    row = await live(connection, job_id)
    assert row is not None
    assert (row["suspect"], row["crashes"], row["attempt"]) == (False, 1, 1)


async def test_one_batch_may_hold_every_outcome(connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, *[{"kind": "work"}] * 5)
    a, b, c, d, e = await claim(connection)
    written = await ack(
        connection, released(e), cancelled(d, "x", "y"), retried(c, 5), dead(b), completed(a, [1, "two", None])
    )
    assert written == {a.id, b.id, c.id, d.id, e.id}
    rows = await connection.fetch("select state from howdah.job_status order by id")
    assert [row["state"] for row in rows] == ["completed", "dead", "retrying", "cancelled", "ready"]
    assert (await status(connection, a.id))["result"] == [1, "two", None]


async def test_the_last_progress_is_kept(connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, *[{"kind": "work"}] * 3)
    a, b, c = await claim(connection)
    await connection.execute("""update howdah.jobs set progress = '{"done": 1}'""")
    await ack(connection, Ack(a, "completed", progress={"done": 9}), Ack(b, "completed"), Ack(c, "snoozed", delay=1))
    progress = [(await status(connection, job.id))["progress"] for job in (a, b, c)]
    assert progress == [{"done": 9}, {"done": 1}, {"done": 1}]


async def test_only_the_last_ten_errors_are_kept(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, max_attempts=100)
    for n in range(1, 13):
        await ack(connection, retried(await claim_one(connection), message=f"failure {n}"))
    row = await live(connection, job_id)
    assert row is not None
    assert [error["message"] for error in row["errors"]] == [f"failure {n}" for n in range(3, 13)]
    assert [error["attempt"] for error in row["errors"]] == list(range(3, 13))
    await ack(connection, dead(await claim_one(connection), "failure 13"))
    row = await ended(connection, job_id)
    assert row is not None
    assert [error["message"] for error in row["errors"]] == [f"failure {n}" for n in range(4, 14)]


async def test_without_history_an_ended_job_is_gone(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, unique_key="k")
    job = await claim_one(connection)
    assert await ack(connection, completed(job), keep=False) == {job_id}
    assert await connection.fetch("select from howdah.job_status") == []
    assert await fate(connection, job, sent_before=True, keep=False) == "done"
    assert await fate(connection, job, sent_before=False, keep=False) == "lost"


# -- ack: the fence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["completed", "dead", "cancelled", "crashed", "retried", "released", "rescued"])
async def test_an_ack_under_another_lease_changes_nothing(connection: asyncpg.Connection, outcome: str) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    before = await live(connection, job_id)
    stranger = Held(job_id, job.lease ^ 1, job.row)
    assert await ack(connection, Ack(stranger, outcome)) == set()
    assert await live(connection, job_id) == before
    assert await connection.fetchval("select count(*) from howdah.job_history") == 0
    assert await fate(connection, stranger) == "lost"


async def test_a_lost_lease_in_a_batch_does_not_hold_up_the_others(connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, *[{"kind": "work"}] * 3)
    a, b, c = await claim(connection)
    stale = Held(b.id, b.lease ^ 1, b.row)
    nowhere = Held(10**12, 5, b.row)
    assert await ack(connection, completed(a), completed(stale), completed(nowhere), completed(c)) == {a.id, c.id}
    assert await fate(connection, nowhere) == "lost"


@pytest.mark.parametrize("outcome", ["completed", "dead", "cancelled", "retried", "snoozed", "released"])
async def test_a_repeated_ack_was_done(connection: asyncpg.Connection, outcome: str) -> None:
    await enqueue(connection)
    done = Ack(await claim_one(connection), outcome, delay=0)
    assert await ack(connection, done) == {done.job.id}
    after = await connection.fetch("select * from howdah.job_status")
    assert await ack(connection, done) == set()
    assert await connection.fetch("select * from howdah.job_status") == after
    assert await fate(connection, done.job, sent_before=True) == "done"


async def test_a_repeated_ack_was_done_also_when_somebody_has_the_job_by_now(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    first = await claim_one(connection)
    await ack(connection, retried(first))
    second = await claim_one(connection, worker=2)
    assert await fate(connection, first) == "done"
    assert await fate(connection, second) == "busy"
    await ack(connection, rescued(second))
    assert await fate(connection, first) == "done"


async def test_an_ack_after_a_rescue_is_a_lost_lease(connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, *[{"kind": "work"}] * 2)
    frozen, buried = await claim(connection)
    await ack(connection, rescued(frozen), crashed(buried))
    for job in (frozen, buried):
        assert await ack(connection, completed(job)) == set()
        assert await fate(connection, job, sent_before=True) == "lost"


async def test_an_ack_never_waits_for_a_row_that_somebody_holds(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    holder = await connect()
    await enqueue_many(connection, *[{"kind": "work"}] * 3)
    a, b, c = await claim(connection)
    await connection.execute("set lock_timeout = '1ms'")
    async with holder.transaction():
        await holder.execute("select from howdah.jobs where id = $1 for update", b.id)
        assert await ack(connection, completed(a), completed(b), retried(c)) == {a.id, c.id}
        assert await fate(connection, b, sent_before=True) == "busy"
    assert await ack(connection, completed(b)) == {b.id}


# -- complete ---------------------------------------------------------------------------------------------------------


async def complete(connection: asyncpg.Connection, job: Held, result: Any = None) -> str:
    outcome: str = await connection.fetchval("select howdah.complete($1, $2, $3)", job.id, job.lease, result)
    return outcome


async def test_a_completion_commits_with_what_the_handler_wrote(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    await connection.execute("create table likes (n int)")
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    async with connection.transaction():
        await connection.execute("insert into likes values (1)")
        assert await complete(connection, job, {"n": 1}) == "completed"
        assert await live(other, job_id) is not None
        assert await other.fetchval("select count(*) from likes") == 0
    assert await live(other, job_id) is None
    row = await ended(other, job_id)
    assert row is not None
    assert (row["state"], row["result"], row["lease"]) == ("completed", {"n": 1}, job.lease)
    assert row["claimed_at"] <= row["started_at"] <= row["finished_at"]
    assert await complete(connection, job) == "completed"


async def test_a_completion_rolls_back_with_what_the_handler_wrote(connection: asyncpg.Connection) -> None:
    await connection.execute("create table likes (n int)")
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    before = await live(connection, job_id)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("insert into likes values (1)")
    await complete(connection, job)
    await transaction.rollback()
    assert await connection.fetchval("select count(*) from likes") == 0
    assert await live(connection, job_id) == before
    assert await ended(connection, job_id) is None


async def test_a_completion_under_an_old_lease_is_refused_and_takes_the_writes_with_it(
    connection: asyncpg.Connection,
) -> None:
    await connection.execute("create table likes (n int)")
    job_id = await enqueue(connection)
    old = await claim_one(connection)
    await ack(connection, released(old))
    new = await claim_one(connection)
    with refused("JB008", naming=f"job {job_id}"):
        async with connection.transaction():
            await connection.execute("insert into likes values (1)")
            await complete(connection, old)
    assert await connection.fetchval("select count(*) from likes") == 0
    assert await complete(connection, new) == "completed"


async def test_a_completion_of_a_dead_or_unknown_job_is_refused(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await ack(connection, dead(job))
    with refused("JB008", naming=f"job {job_id}"):
        await complete(connection, job)


async def test_a_rescue_passes_over_a_job_whose_completion_is_about_to_commit(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    other = await connect()
    worker = await add_dead_worker(connection)
    job_id = await enqueue(connection)
    job = await claim_one(connection, worker)
    async with connection.transaction():
        await complete(connection, job)
        [row] = await rescue(other)
        assert (row["rescued"], row["buried"]) == (0, 0)
    assert (await status(connection, job_id))["state"] == "completed"


# -- promote ----------------------------------------------------------------------------------------------------------


async def promote(connection: asyncpg.Connection, count: int = 100) -> tuple[int, float | None]:
    row = await connection.fetchrow("select * from howdah.promote($1)", count)
    return row["promoted"], row["next_in"]


async def due(connection: asyncpg.Connection, when: str, **given: Any) -> int:
    """Enqueue a job that becomes due `when`, such as '-1 second' from now."""
    job_id = await enqueue(connection, delay=timedelta(hours=9), **given)
    await connection.execute(
        """update howdah.jobs set due_at = clock_timestamp() + $2::text::interval,
        ready_at = clock_timestamp() + $2::text::interval where id = $1""",
        job_id,
        when,
    )
    return job_id


async def test_a_due_job_becomes_claimable_and_one_that_is_not_due_does_not(connection: asyncpg.Connection) -> None:
    past, future = await due(connection, "-5 seconds"), await due(connection, "1 hour")
    promoted, next_in = await promote(connection)
    assert promoted == 1
    assert next_in is not None
    assert 3590 < next_in <= 3600
    job = await claim_one(connection)
    assert job.id == past
    assert 5 <= job.row["waited"] < 60
    assert (await status(connection, future))["state"] == "scheduled"


async def test_the_longest_due_are_promoted_first(connection: asyncpg.Connection) -> None:
    late, later, latest = [await due(connection, f"-{n} seconds") for n in (1, 2, 3)]
    promoted, next_in = await promote(connection, 2)
    assert (promoted, next_in) == (2, 0)
    assert [job.id for job in await claim(connection)] == [later, latest]
    assert await promote(connection) == (1, None)
    assert [job.id for job in await claim(connection)] == [late]


async def test_a_due_job_that_somebody_holds_is_not_waited_for_in_a_circle(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    held, future = await due(connection, "-5 seconds"), await due(connection, "1 hour")
    other = await connect()
    async with other.transaction():
        await other.execute("select from howdah.jobs where id = $1 for update", held)
        promoted, next_in = await promote(connection)
        assert promoted == 0
        assert next_in is not None
        assert 3590 < next_in <= 3600
    assert await promote_one(connection)
    assert (await status(connection, future))["state"] == "scheduled"


async def test_what_waits_for_something_else_is_never_promoted(connection: asyncpg.Connection) -> None:
    job_id = await due(connection, "1 hour")
    await connection.execute("update howdah.jobs set due_at = 'infinity'")
    assert await promote(connection) == (0, None)
    assert (await status(connection, job_id))["state"] == "waiting"


async def test_with_nothing_scheduled_there_is_no_next_time(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    assert await promote(connection) == (0, None)


async def test_a_retried_job_is_claimed_again_when_its_delay_is_over(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    await ack(connection, retried(await claim_one(connection), delay=0.2))
    promoted, next_in = await promote(connection)
    assert (promoted, await claim(connection)) == (0, [])
    assert next_in is not None
    assert 0 < next_in <= 0.2
    await aeventually(lambda: promote_one(connection))
    job = await claim_one(connection)
    assert (job.id, job.row["attempt"]) == (job_id, 2)


async def promote_one(connection: asyncpg.Connection) -> bool:
    promoted, _ = await promote(connection)
    return promoted == 1


async def test_two_promoters_share_the_work(connection: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    for _ in range(6):
        await due(connection, "-1 second")
    async with connection.transaction():
        assert (await promote(connection, 2))[0] == 2
        assert (await promote(other))[0] == 4
    assert len(await claim(connection)) == 6


async def test_a_promoted_job_wakes_its_queue(connection: asyncpg.Connection, connect: Connect) -> None:
    heard: list[str] = []
    listener = await connect()
    await listener.add_listener("howdah", lambda *event: heard.append(event[3]))
    await add_worker(connection, queues=["a", "b"])
    await connection.execute("update howdah.workers set sleeps = true")
    await due(connection, "-1 second", queue="b")
    await due(connection, "1 hour", queue="a")
    await promote(connection)
    await connection.execute("select pg_notify('howdah', 'the end')")
    await aeventually(lambda: "the end" in heard)
    assert heard == ["b", "the end"]


# -- coalescing -------------------------------------------------------------------------------------------------------


async def coalesce(connection: asyncpg.Connection, count: int = 100) -> tuple[int, float | None]:
    row = await connection.fetchrow("select * from howdah.coalesce_events($1)", count)
    return row["made"], row["next_in"]


async def payloads(connection: asyncpg.Connection) -> list[Any]:
    rows = await connection.fetch("select payload from howdah.jobs order by id")
    return [row["payload"] for row in rows]


async def test_many_events_make_one_job_with_the_last_payload(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "sync", "queue": "posts", "priority": 2, "max_attempts": 5, "timeout": 30})
    for n in range(5):
        await enqueue_coalesced(connection, "sync", {"n": n}, "post:1", subject=f"s{n}")
    await enqueue_coalesced(connection, "sync", {"n": 9}, "post:2")
    await enqueue_coalesced(connection, "other", {"n": 8}, "post:1", queue="q", priority=7)
    assert await coalesce(connection) == (3, None)
    assert sorted(await payloads(connection), key=lambda payload: payload["n"]) == [{"n": 4}, {"n": 8}, {"n": 9}]
    job = await connection.fetchrow("select * from howdah.jobs where subject = 's4'")
    assert (job["kind"], job["queue"], job["priority"], job["max_attempts"]) == ("sync", "posts", 2, 5)
    assert (job["timeout"], job["state"]) == (timedelta(seconds=30), "ready")
    other = await connection.fetchrow("select * from howdah.jobs where kind = 'other'")
    assert (other["queue"], other["priority"], other["max_attempts"]) == ("q", 7, 3)
    assert await coalesce(connection) == (0, None)


async def test_a_key_is_not_ripe_before_its_delay_has_passed(connection: asyncpg.Connection) -> None:
    await enqueue_coalesced(connection, delay=timedelta(hours=1))
    made, next_in = await coalesce(connection)
    assert made == 0
    assert next_in is not None
    assert 3590 < next_in <= 3600


async def test_a_steady_stream_makes_one_job_per_delay(connection: asyncpg.Connection) -> None:
    """The delay counts from the first event of a key: later ones neither put the job off nor make another."""
    for n in range(4):
        await enqueue_coalesced(connection, payload={"n": n}, delay=timedelta(hours=1))
    await connection.execute("update howdah.events set due_at = now() - interval '1 second' where id = 1")
    assert (await coalesce(connection))[0] == 1
    assert await payloads(connection) == [{"n": 3}]
    for n in range(4, 8):
        await enqueue_coalesced(connection, payload={"n": n}, delay=timedelta(hours=1))
        assert (await coalesce(connection))[0] == 0
    await connection.execute("update howdah.events set due_at = now() where id = (select min(id) from howdah.events)")
    assert (await coalesce(connection))[0] == 1
    assert await payloads(connection) == [{"n": 3}, {"n": 7}]


async def test_a_real_stream_makes_at_most_one_job_per_delay(connection: asyncpg.Connection) -> None:
    delay = 0.2
    begin = asyncio.get_running_loop().time()
    sent = 0
    while asyncio.get_running_loop().time() < begin + 5 * delay:
        await enqueue_coalesced(connection, payload={"n": sent}, delay=timedelta(seconds=delay))
        sent += 1
        await coalesce(connection)
    spent = asyncio.get_running_loop().time() - begin
    made = await payloads(connection)
    assert 2 <= len(made) <= spent / delay
    assert sent > len(made)


async def test_an_event_that_commits_late_makes_another_job(connection: asyncpg.Connection, connect: Connect) -> None:
    late = await connect()
    transaction = late.transaction()
    await transaction.start()
    await enqueue_coalesced(late, payload={"who": "late"})
    await enqueue_coalesced(connection, payload={"who": "early"})
    assert (await coalesce(connection))[0] == 1
    assert (await coalesce(connection))[0] == 0
    await transaction.commit()
    assert (await coalesce(connection))[0] == 1
    assert await payloads(connection) == [{"who": "early"}, {"who": "late"}]


async def test_an_event_during_the_run_makes_another_job(connection: asyncpg.Connection) -> None:
    await enqueue_coalesced(connection, payload={"n": 1})
    await coalesce(connection)
    await claim_one(connection)
    await enqueue_coalesced(connection, payload={"n": 2})
    assert (await coalesce(connection))[0] == 1
    assert (await claim_one(connection)).row["payload"] == {"n": 2}


async def test_two_at_once_make_one_job(connection: asyncpg.Connection, connect: Connect) -> None:
    """The second does not see what the first has taken, nor takes what came after: that would be two in one delay."""
    other = await connect()
    await other.execute("set lock_timeout = '1ms'")
    await enqueue_coalesced(connection, payload={"n": 1})
    async with connection.transaction():
        assert (await coalesce(connection))[0] == 1
        await enqueue_coalesced(other, payload={"n": 2})
        assert (await coalesce(other))[0] == 0
    assert (await coalesce(other))[0] == 1
    assert await payloads(connection) == [{"n": 1}, {"n": 2}]


async def test_callers_never_wait_for_one_another(connection: asyncpg.Connection, connect: Connect) -> None:
    """Two sessions touch two posts in opposite order, and stay open: neither waits, and neither is lost."""
    other = await connect()
    for session in (connection, other):
        await session.execute("set lock_timeout = '1ms'")
    async with connection.transaction(), other.transaction():
        await enqueue_coalesced(connection, payload={"by": 1}, key="post:1")
        await enqueue_coalesced(other, payload={"by": 2}, key="post:2")
        await enqueue_coalesced(connection, payload={"by": 1}, key="post:2")
        await enqueue_coalesced(other, payload={"by": 2}, key="post:1")
    assert (await coalesce(connection))[0] == 2


async def test_a_caller_never_waits_for_the_coalescing(connection: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    await other.execute("set lock_timeout = '1ms'")
    await enqueue_coalesced(connection)
    async with connection.transaction():
        await coalesce(connection)
        await enqueue_coalesced(other)


# -- beat and leader --------------------------------------------------------------------------------------------------


async def beat(connection: asyncpg.Connection, worker: int) -> asyncpg.Record | None:
    return await connection.fetchrow("select * from howdah.worker_beat($1)", worker)


async def test_a_beat_says_that_the_worker_lives(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection, silent_for=20)
    assert await beat(connection, worker) is not None
    silence = await connection.fetchval("select clock_timestamp() - beat_at from howdah.workers")
    assert silence < timedelta(seconds=10)


async def test_a_worker_that_was_taken_for_dead_is_told(connection: asyncpg.Connection) -> None:
    worker = await add_dead_worker(connection)
    await rescue(connection)
    assert await beat(connection, worker) is None


async def test_one_worker_leads_until_it_is_silent_for_its_ttl(connection: asyncpg.Connection) -> None:
    first, second = await add_worker(connection), await add_worker(connection)
    assert [(await beat(connection, worker))["leads"] for worker in (first, second, first)] == [True, False, True]
    await connection.execute("update howdah.leader set until = clock_timestamp() - interval '1 second'")
    assert [(await beat(connection, worker))["leads"] for worker in (second, first)] == [True, False]


async def test_a_beat_tells_of_suspects(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection)
    await enqueue(connection)
    assert (await beat(connection, worker))["suspects"] is False
    await suspect(connection)
    assert (await beat(connection, worker))["suspects"] is True


# -- rescue -----------------------------------------------------------------------------------------------------------


async def rescue(
    connection: asyncpg.Connection, count: int = 10_000, *, rescuer: int | None = None
) -> list[asyncpg.Record]:
    return await connection.fetch("select * from howdah.rescue($1, rescuer => $2)", count, rescuer)


async def test_nobody_rescues_its_own_jobs(connection: asyncpg.Connection) -> None:
    frozen, dead = [await add_dead_worker(connection) for _ in range(2)]
    for worker in (frozen, dead):
        await enqueue(connection)
        await claim_one(connection, worker)
    assert [row["worker"] for row in await rescue(connection, rescuer=frozen)] == [dead]
    assert await connection.fetch("select leased_by from howdah.jobs where lease is not null") == [(frozen,)]
    assert [row["worker"] for row in await rescue(connection)] == [frozen]


async def test_the_jobs_of_a_dead_worker_come_back_as_suspects_with_nothing_counted(
    connection: asyncpg.Connection,
) -> None:
    gone = await add_dead_worker(connection, name="host:9")
    ids = [await enqueue(connection) for _ in range(3)]
    jobs = await claim(connection, gone)
    await write_start(connection, jobs[0])
    [row] = await rescue(connection)
    assert (row["worker"], row["name"], row["rescued"], row["buried"]) == (gone, "host:9", 3, 0)
    assert row["beat_age"] >= 60
    rows = await connection.fetch("select * from howdah.jobs order by id")
    assert [row["id"] for row in rows] == ids
    for job in rows:
        assert (job["state"], job["suspect"], job["attempt"], job["crashes"]) == ("ready", True, 0, 0)
        assert (job["lease"], job["leased_by"], job["errors"]) == (None, None, None)
    assert await connection.fetchval("select count(*) from howdah.workers") == 0
    assert await rescue(connection) == []


async def test_a_living_worker_is_not_touched(connection: asyncpg.Connection) -> None:
    alive = await add_worker(connection, ttl=2)
    await enqueue(connection)
    job = await claim_one(connection, alive)
    before = await live(connection, job.id)
    age = "select clock_timestamp() - backend_start > interval '2 seconds' from pg_stat_get_activity(pg_backend_pid())"
    await aeventually(lambda: connection.fetchval(age))
    assert await beat(connection, alive) is not None
    assert await rescue(connection) == []
    assert await live(connection, job.id) == before
    assert await connection.fetchval("select count(*) from howdah.workers") == 1


async def test_nobody_is_dead_before_the_rescuer_has_been_connected_for_a_ttl(connection: asyncpg.Connection) -> None:
    """After an outage, of the server or of the wire, the others have had no time to beat."""
    await add_worker(connection, ttl=3600, silent_for=7200)
    assert await rescue(connection) == []


async def test_a_worker_that_has_said_goodbye_is_taken_at_its_word(connection: asyncpg.Connection) -> None:
    gone = await add_worker(connection, ttl=3600)
    await enqueue(connection)
    await claim_one(connection, gone)
    await connection.execute("update howdah.workers set beat_at = 'epoch'")
    [row] = await rescue(connection)
    assert (row["worker"], row["rescued"]) == (gone, 1)


async def test_only_the_dead_workers_jobs_are_taken(connection: asyncpg.Connection) -> None:
    gone, alive = await add_dead_worker(connection), await add_worker(connection)
    await enqueue_many(connection, *[{"kind": "work"}] * 4)
    theirs, mine = await claim(connection, gone, count=2), await claim(connection, alive, count=2)
    await rescue(connection)
    rows = await connection.fetch("select id, leased_by from howdah.jobs order by id")
    assert [tuple(row) for row in rows] == [(job.id, None) for job in theirs] + [(job.id, alive) for job in mine]


async def test_a_poison_job_is_started_three_times_at_most(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, max_attempts=25)
    gone = await add_dead_worker(connection)
    await write_start(connection, await claim_one(connection, gone))
    await rescue(connection)
    starts = 1
    while (await status(connection, job_id))["state"] != "dead":
        gone = await add_dead_worker(connection, name="host:13")
        again = await claim_suspect(connection, gone)
        assert again is not None
        await write_start(connection, again)
        starts += 1
        await rescue(connection)
    assert starts == 3
    row = await ended(connection, job_id)
    assert row is not None
    assert row["crashes"] == 2
    assert row["errors"][-1]["type"] == "WorkerDied"
    assert row["errors"][-1]["message"] == "worker host:13 died while it ran alone; it has brought down 2 workers"


async def test_a_job_that_was_cleared_is_under_no_more_suspicion_than_any_other(connection: asyncpg.Connection) -> None:
    """It crashed once and then ended well; dying beside others now makes it a suspect again, and not dead."""
    job_id = await suspect(connection, crashes=1)
    job = await claim_suspect(connection)
    assert job is not None
    await ack(connection, retried(job))
    gone = await add_dead_worker(connection)
    await write_start(connection, await claim_one(connection, gone))
    [row] = await rescue(connection)
    assert (row["rescued"], row["buried"]) == (1, 0)
    back = await live(connection, job_id)
    assert back is not None
    assert (back["suspect"], back["crashes"]) == (True, 1)


async def test_a_job_that_never_started_is_never_punished(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, max_attempts=1)
    for _ in range(5):
        gone = await add_dead_worker(connection)
        await connection.execute("update howdah.jobs set suspect = false")
        await claim_one(connection, gone)
        [row] = await rescue(connection)
        assert (row["rescued"], row["buried"]) == (1, 0)
    job = await live(connection, job_id)
    assert job is not None
    assert (job["attempt"], job["crashes"], job["errors"]) == (0, 0, None)


async def test_an_at_most_once_job_that_had_started_is_dead(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection, max_attempts=1)
    gone = await add_dead_worker(connection, name="host:9")
    await write_start(connection, await claim_one(connection, gone))
    [row] = await rescue(connection)
    assert (row["rescued"], row["buried"]) == (0, 1)
    shown = await status(connection, job_id)
    assert shown["state"] == "dead"
    assert shown["error"] == "worker host:9 died while it ran, and it may run at most once"


async def test_a_row_that_somebody_holds_stays_and_so_does_its_worker(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    holder = await connect()
    gone = await add_dead_worker(connection)
    await enqueue_many(connection, *[{"kind": "work"}] * 2)
    first, second = await claim(connection, gone)
    await connection.execute("set lock_timeout = '1ms'")
    async with holder.transaction():
        await holder.execute("select from howdah.jobs where id = $1 for update", first.id)
        [row] = await rescue(connection)
        assert row["rescued"] == 1
        assert (await status(connection, first.id))["worker"] == gone
        assert (await status(connection, second.id))["worker"] is None
        assert await connection.fetchval("select count(*) from howdah.workers") == 1
    [row] = await rescue(connection)
    assert row["rescued"] == 1
    assert (await status(connection, first.id))["worker"] is None
    assert await connection.fetchval("select count(*) from howdah.workers") == 0


async def test_a_large_rescue_goes_in_parts(connection: asyncpg.Connection) -> None:
    gone = await add_dead_worker(connection)
    await enqueue_many(connection, *[{"kind": "work"}] * 5)
    await claim(connection, gone)
    assert [(await rescue(connection, 2))[0]["rescued"] for _ in range(3)] == [2, 2, 1]
    assert await rescue(connection) == []


async def test_two_rescuers_at_once_take_each_worker_once(connection: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    gone = await add_dead_worker(connection)
    await enqueue(connection)
    await claim_one(connection, gone)
    async with connection.transaction():
        assert len(await rescue(connection)) == 1
        assert await rescue(other) == []


# -- partitions -------------------------------------------------------------------------------------------------------


async def partitions(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        """select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'howdah.job_history'::regclass order by 1"""
    )
    return [row["relname"] for row in rows]


def names(*days: int) -> list[str]:
    """Partition names of days counted from today."""
    today = datetime.now(UTC).date()
    return [f"job_history_{today + timedelta(days=day):%Y%m%d}" for day in days]


async def make_day(connection: asyncpg.Connection, day: int) -> str:
    """Make the partition of a day counted from today, as it was made back then."""
    [name] = names(day)
    start = datetime.combine(datetime.now(UTC).date(), datetime.min.time(), UTC) + timedelta(days=day)
    await connection.execute(
        f"create table howdah.{name} partition of howdah.job_history "
        f"for values from ('{start.isoformat()}') to ('{(start + timedelta(days=1)).isoformat()}')"
    )
    return name


async def test_a_new_schema_has_fifteen_days_of_history(connection: asyncpg.Connection) -> None:
    assert await partitions(connection) == names(*range(15))
    assert await connection.fetchval("select howdah.make_partitions()") == 15


async def test_partitions_are_made_ahead_with_the_indexes_and_checks_of_their_parent(
    connection: asyncpg.Connection,
) -> None:
    assert await connection.fetchval("select howdah.make_partitions(20)") == 21
    assert await partitions(connection) == names(*range(21))
    new, old = names(20, 0)
    count = """select (select count(*) from pg_index where indrelid = $1::text::regclass),
        (select count(*) from pg_constraint where conrelid = $1::text::regclass and contype = 'c')"""
    assert await connection.fetchrow(count, f"howdah.{new}") == await connection.fetchrow(count, f"howdah.{old}")
    attached = await connection.fetchval(
        """select bool_and(i.indisvalid) and count(*) = (select count(*) from pg_inherits a join pg_index p
        on p.indexrelid = a.inhrelid where p.indrelid = $1::text::regclass)
        from pg_index i where i.indrelid = $1::text::regclass""",
        f"howdah.{new}",
    )
    assert attached is True


async def test_makers_at_once_do_no_harm(connection: asyncpg.Connection, connect: Connect) -> None:
    makers = [await connect() for _ in range(4)]
    answers = await asyncio.gather(*[maker.fetchval("select howdah.make_partitions(30)") for maker in makers])
    assert max(answers) == 31
    assert await partitions(connection) == names(*range(31))


async def test_a_maker_gives_way_to_one_that_is_not_through(connection: asyncpg.Connection, connect: Connect) -> None:
    other = await connect()
    async with connection.transaction():
        await connection.execute("select howdah.make_partitions(16)")
        assert await other.fetchval("select howdah.make_partitions(16)") == 15
    assert await other.fetchval("select howdah.make_partitions(16)") == 17


async def test_making_partitions_waits_for_nobody_who_uses_history(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    user = await connect()
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    async with user.transaction():
        await ack(user, completed(job))
        await user.fetch("select * from howdah.job_history")
        assert await connection.fetchval("select howdah.make_partitions(16)") == 17
    assert (await status(connection, job_id))["state"] == "completed"


async def test_an_ack_on_a_missing_day_fails_whole_and_works_when_the_day_is_made(
    connection: asyncpg.Connection,
) -> None:
    await enqueue_many(connection, *[{"kind": "work"}] * 2)
    a, b = await claim(connection)
    [today] = names(0)
    await connection.execute(f"alter table howdah.job_history detach partition howdah.{today}")
    await connection.execute(f"drop table howdah.{today}")
    with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
        await ack(connection, completed(a), retried(b))
    assert (await status(connection, b.id))["state"] == "running"
    assert await connection.fetchval("select howdah.make_partitions()") == 15
    assert await ack(connection, completed(a), retried(b)) == {a.id, b.id}


async def test_old_days_are_dropped_and_the_others_stay(connection: asyncpg.Connection) -> None:
    for day in (-16, -15, -14, -1):
        await make_day(connection, day)
    rows = await connection.fetch("select howdah.drop_partitions(14) as name")
    assert [row["name"] for row in rows] == names(-16, -15)
    assert await partitions(connection) == names(-14, -1, *range(15))
    assert await connection.fetchval("select to_regclass($1) is null", f"howdah.{names(-15)[0]}")


async def test_dropping_gives_up_soon_while_somebody_reads_and_succeeds_later(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    old = await make_day(connection, -15)
    reader = await connect()
    async with reader.transaction():
        await reader.fetch("select * from howdah.job_history")
        dropped = asyncio.create_task(connection.fetch("select howdah.drop_partitions(14) as name"))
        assert await asyncio.wait_for(dropped, 5) == []
        assert old in await partitions(reader)
    rows = await connection.fetch("select howdah.drop_partitions(14) as name")
    assert [row["name"] for row in rows] == [old]


async def test_an_ack_waits_no_longer_than_the_dropping_tries(connection: asyncpg.Connection, connect: Connect) -> None:
    """A drop that waits for a reader holds up those who come after it, but only until it gives up."""
    await make_day(connection, -15)
    await enqueue(connection)
    job = await claim_one(connection)
    reader, dropper = await connect(), await connect()
    async with reader.transaction():
        await reader.fetch("select * from howdah.job_history")
        dropping = asyncio.create_task(dropper.fetch("select howdah.drop_partitions(14)"))
        await aeventually(lambda: waits_for_lock(connection, dropper.get_server_pid()), interval=0.001)
        assert await asyncio.wait_for(ack(connection, completed(job)), 5) == {job.id}
        assert await dropping == []


# -- what the tests above use -----------------------------------------------------------------------------------------


async def suspect(connection: asyncpg.Connection, crashes: int = 0) -> int:
    """Make a job that was rescued before."""
    job_id = await enqueue(connection)
    await connection.execute("update howdah.jobs set suspect = true, crashes = $2 where id = $1", job_id, crashes)
    return job_id


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (completed, {"email": "ada"}),
        (lambda job: cancelled(job, "ada", "no"), {"email": "ada"}),
        (dead, {"email": "ada", "password": "pw"}),
        ("queued", {"email": "ada"}),
        ("others", {"email": "ada", "password": "pw"}),
    ],
)
async def test_what_is_secret_goes_with_the_job_unless_it_may_be_retried(
    connection: asyncpg.Connection, how: Any, kept: dict[str, str]
) -> None:
    await register(connection, {"name": "work", "secret": ["password", "pin"]}, {"name": "plain"})
    kind = "plain" if how == "others" else "work"
    job_id = await enqueue(connection, kind, {"email": "ada", "password": "pw"})
    if how == "queued":
        await connection.execute("select howdah.cancel($1)", job_id)
    else:
        [job] = await claim(connection, kinds=["work", "plain"])
        await ack(connection, completed(job) if how == "others" else how(job))
    row = await ended(connection, job_id)
    assert row is not None
    assert row["payload"] == kept
    if how is dead:
        again = await connection.fetchval("select howdah.retry($1)", job_id)
        assert (await live(connection, again))["payload"]["password"] == "pw"
