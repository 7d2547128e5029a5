"""The protocol for workers in other languages: claim, start, complete, fail, release, beat. Fenced and rescued like the daemon's own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.jobs import add_worker, enqueue, refused, register, status

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect


async def claim(connection: asyncpg.Connection, worker: str = "js:1", count: int = 1, **given: Any) -> list[Any]:
    arguments = {"worker": worker, "queues": ["default"], "kinds": ["work"], "count": count, **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    return list(await connection.fetch(f"select * from howdah.claim({places})", *arguments.values()))


async def claim_one(connection: asyncpg.Connection, worker: str = "js:1", **given: Any) -> Any:
    [job] = await claim(connection, worker, **given)
    return job


async def complete(connection: asyncpg.Connection, job: Any, result: Any = None) -> str:
    return str(await connection.fetchval("select howdah.complete($1, $2, $3)", job["id"], job["lease"], result))


async def fail(connection: asyncpg.Connection, job: Any, error: str = "boom", **given: Any) -> str:
    arguments = {"job_id": job["id"], "lease": job["lease"], "error": error, **given}
    places = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    return str(await connection.fetchval(f"select howdah.fail({places})", *arguments.values()))


async def silence(connection: asyncpg.Connection, worker: str = "js:1") -> None:
    """Let a worker have beaten last long ago; its ttl is short, since the rescuer's connection is young itself."""
    await connection.execute(
        "update howdah.workers set beat_at = beat_at - interval '1 hour', ttl = '1 ms' where name = $1", worker
    )


async def test_a_job_goes_from_claim_to_complete(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(
        connection, payload={"to": "ada"}, subject="user:1", headers={"trace": "x"}, timeout=timedelta(seconds=7)
    )
    job = await claim_one(connection)
    assert (job["id"], job["payload"], job["attempt"], job["max_attempts"], job["timeout"]) == (
        job_id,
        {"to": "ada"},
        1,
        3,
        7,
    )
    assert (job["queue"], job["kind"], job["subject"], job["headers"]) == ("default", "work", "user:1", {"trace": "x"})
    assert await connection.fetchval("select howdah.start($1, $2)", job_id, job["lease"])
    assert (await status(connection, job_id))["started_at"] is not None
    assert await complete(connection, job, {"sent": 1}) == "completed"
    row = await status(connection, job_id)
    assert (row["state"], row["result"]) == ("completed", {"sent": 1})
    assert await complete(connection, job) == "completed"  # the reply was lost


async def test_leases_survive_languages_whose_numbers_are_doubles(connection: asyncpg.Connection) -> None:
    for _ in range(20):
        await enqueue(connection)
    leases = {(await claim_one(connection))["lease"] for _ in range(20)}
    assert len(leases) == 20
    assert all(0 < lease <= 2**53 and int(float(lease)) == lease for lease in leases)


async def test_the_most_urgent_come_first_and_never_more_than_asked_for(connection: asyncpg.Connection) -> None:
    ids = [await enqueue(connection, priority=priority) for priority in (0, 5, 10)]
    elsewhere = await enqueue(connection, queue="mail")
    await enqueue(connection, "other")
    jobs = await claim(connection, count=2, queues=["mail", "default"])
    assert [job["id"] for job in jobs] == [elsewhere, ids[2]]
    assert [job["id"] for job in await claim(connection, count=9)] == [ids[1], ids[0]]
    assert await claim(connection, count=9) == []


async def test_a_failed_attempt_comes_back_after_the_usual_backoff_and_then_dies(
    connection: asyncpg.Connection,
) -> None:
    job_id = await enqueue(connection, max_attempts=2)
    assert await fail(connection, await claim_one(connection), "no route to host") == "retrying"
    row = await status(connection, job_id)
    assert (row["error"], row["errors"][0]["attempt"]) == ("no route to host", 1)
    delay = (row["due_at"] - row["updated_at"]).total_seconds()
    assert 0.9 <= delay <= 2.1
    await connection.execute("select howdah.reschedule($1, now() - interval '1 second')", job_id)
    job = await claim_one(connection)
    error = '{"type": "TypeError", "message": "x is not a function", "stack": "at 1"}'
    assert await fail(connection, job, error) == "dead"
    assert await fail(connection, job, error) == "dead"  # the reply was lost
    row = await status(connection, job_id)
    assert (row["state"], row["error"], row["errors"][1]["type"]) == ("dead", "x is not a function", "TypeError")


async def test_the_worker_may_say_when_to_try_again_or_that_there_is_no_hope(connection: asyncpg.Connection) -> None:
    late, hopeless = await enqueue(connection), await enqueue(connection)
    jobs = {job["id"]: job for job in await claim(connection, count=2)}
    assert await fail(connection, jobs[late], retry_in=timedelta(hours=1)) == "retrying"
    row = await status(connection, late)
    assert 3590 < (row["due_at"] - row["updated_at"]).total_seconds() < 3610
    assert await fail(connection, jobs[hopeless], hopeless=True) == "dead"


@pytest.mark.parametrize("error", ["plain words", '"text"', "[1]", '{"no": "message"}', "{broken", "x" * 50_000])
async def test_whatever_the_error_looks_like_it_is_kept(connection: asyncpg.Connection, error: str) -> None:
    job_id = await enqueue(connection, max_attempts=1)
    assert await fail(connection, await claim_one(connection), error) == "dead"
    assert (await status(connection, job_id))["error"] == error[:10_000]


async def test_a_released_job_is_ready_again_and_its_attempt_is_not_counted(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    release = "select howdah.release($1, $2)"
    assert await connection.fetchval(release, job["id"], job["lease"]) == "ready"
    assert await connection.fetchval(release, job["id"], job["lease"]) == "ready"  # the reply was lost
    assert (await status(connection, job_id))["attempt"] == 0
    assert (await claim_one(connection))["id"] == job_id


async def test_a_lost_lease_is_refused_everywhere(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    old = await claim_one(connection)
    await silence(connection)
    await connection.fetch("select howdah.rescue()")
    new = await claim_one(connection, "js:2")
    assert new["id"] == job_id
    for call in ("complete($1, $2)", "fail($1, $2, 'late')", "release($1, $2)"):
        with refused("JB008", naming=f"job {job_id} is not held under lease {old['lease']}"):
            await connection.execute(f"select howdah.{call}", old["id"], old["lease"])
    assert not await connection.fetchval("select howdah.start($1, $2)", old["id"], old["lease"])
    assert (await status(connection, job_id))["state"] == "running"
    assert await complete(connection, new) == "completed"


async def test_a_worker_that_was_taken_for_dead_learns_it_from_its_beat(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    await claim_one(connection)
    beat = "select alive, cancelled from howdah.beat('js:1')"
    assert tuple(await connection.fetchrow(beat)) == (True, [])
    await silence(connection)
    await connection.fetch("select howdah.rescue()")
    assert tuple(await connection.fetchrow(beat)) == (False, [])


async def test_a_beat_keeps_the_jobs(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await connection.execute("update howdah.workers set beat_at = beat_at - interval '1 hour'")
    await connection.execute("select howdah.beat('js:1')")
    await connection.fetch("select howdah.rescue()")
    assert (await status(connection, job_id))["state"] == "running"
    assert await complete(connection, job) == "completed"


async def test_a_beat_tells_what_is_to_be_cancelled_and_a_release_ends_it(connection: asyncpg.Connection) -> None:
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    assert await connection.fetchval("select howdah.cancel($1, 'ada', 'not needed')", job_id) == "running"
    assert await connection.fetchval("select cancelled from howdah.beat('js:1')") == [job_id]
    assert await connection.fetchval("select cancelled from howdah.beat('js:2')") == []
    assert await connection.fetchval("select howdah.release($1, $2)", job_id, job["lease"]) == "cancelled"
    row = await status(connection, job_id)
    assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == ("cancelled", "ada", "not needed")


async def test_a_job_that_may_run_at_most_once_is_not_run_again_after_its_worker_died(
    connection: asyncpg.Connection,
) -> None:
    job_id = await enqueue(connection, max_attempts=1)
    await claim_one(connection)
    await silence(connection)
    await connection.fetch("select howdah.rescue()")
    assert (await status(connection, job_id))["state"] == "dead"


async def test_a_suspect_comes_alone_with_its_start_written(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    await claim_one(connection)
    await silence(connection)
    await connection.fetch("select howdah.rescue()")
    await enqueue(connection)
    [suspect] = await claim(connection, "js:2", count=10)
    assert suspect["id"] == first
    assert (await status(connection, first))["started_at"] is not None
    assert len(await claim(connection, "js:2", count=10)) == 1


async def test_a_paused_queue_gives_nothing(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    await connection.execute("select howdah.pause('default')")
    assert await claim(connection) == []


async def test_a_worker_that_found_little_is_woken_and_a_busy_one_is_not(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    words: list[str] = []
    listener = await connect()
    await listener.add_listener("howdah", lambda _c, _p, _n, word: words.append(str(word)))
    await claim(connection, count=2)
    await enqueue(connection)
    await listener.execute("select 1")
    assert words == ["default"]
    await claim(connection, count=1)
    await enqueue(connection)
    await listener.execute("select 1")
    assert words == ["default"]


async def test_two_workers_of_one_name_share_a_row_and_a_daemon_of_that_name_is_another(
    connection: asyncpg.Connection,
) -> None:
    daemon = await add_worker(connection, name="js:1")
    await claim(connection)
    await claim(connection, kinds=["other"])
    rows = await connection.fetch("select id, kinds from howdah.workers where version = 'sql'")
    assert [row["kinds"] for row in rows] == [["other"]]
    assert rows[0]["id"] != daemon


@pytest.mark.parametrize(
    ("naming", "given"),
    [
        ("worker is NULL", {"worker": None}),
        ("worker is ''", {"worker": ""}),
        ("queues and kinds", {"queues": []}),
        ("queues and kinds", {"kinds": []}),
        ("queues and kinds", {"kinds": None}),
        ("count is 0", {"count": 0}),
        ("count is 1001", {"count": 1001}),
        ("ttl is", {"ttl": timedelta(seconds=1)}),
    ],
)
async def test_bad_claims_are_refused_by_name(
    connection: asyncpg.Connection, naming: str, given: dict[str, Any]
) -> None:
    with refused("JB002", naming=naming):
        await claim(connection, **given)


async def test_a_kind_remembers_who_had_it_last(connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work"})
    await claim(connection)
    await silence(connection)
    await connection.fetch("select howdah.rescue()")
    assert await connection.fetchval("select last_worker from howdah.kinds where name = 'work'") == "js:1"
