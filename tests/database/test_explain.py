"""howdah.explain says in a sentence why a job is not running, and what would change that."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.jobs import (
    ack,
    add_dead_worker,
    add_worker,
    cancelled,
    claim,
    claim_one,
    completed,
    dead,
    enqueue,
    refused,
    register,
    retried,
    write_start,
)

if TYPE_CHECKING:
    import asyncpg


async def explain(connection: asyncpg.Connection, job_id: int) -> str:
    return str(await connection.fetchval("select howdah.explain($1)", job_id))


async def test_a_scheduled_job(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection, delay=timedelta(hours=3))
    text = await explain(connection, job)
    assert text.startswith(f"Job {job} (work) is scheduled for 20")
    assert "in 3 h; howdah.reschedule moves it." in text


async def test_a_job_that_failed_and_waits_for_its_next_attempt(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    await ack(connection, retried(await claim_one(connection), delay=600, message="no route\nto host"))
    text = await explain(connection, job)
    assert "failed in attempt 1 of 3 (ValueError: no route) and is tried again at 20" in text
    assert "in 10 min" in text


async def test_a_job_in_a_paused_queue(connection: asyncpg.Connection) -> None:
    await add_worker(connection)
    job = await enqueue(connection)
    await connection.execute("select howdah.pause('default', 'ada')")
    text = await explain(connection, job)
    assert "has been ready for" in text
    assert "but ada paused queue default" in text
    assert text.endswith("howdah resume default lets it run.")


async def test_a_kind_that_no_living_worker_has(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection, "lonely")
    assert "no living worker has a handler for lonely; the kind was never registered. Start" in await explain(
        connection, job
    )
    await register(connection, {"name": "lonely"})
    assert "it was registered, but no worker has had it since" in await explain(connection, job)
    worker = await add_worker(connection, name="web1:7", kinds=["lonely"])
    assert "no living worker" not in await explain(connection, job)
    await connection.execute("update howdah.workers set beat_at = now() - interval '3 hours' where id = $1", worker)
    assert "no living worker" in await explain(connection, job)
    await connection.execute("delete from howdah.workers where id = $1", worker)
    assert "web1:7 had it last, 3 h ago" in await explain(connection, job)


async def test_a_queue_that_nobody_serves(connection: asyncpg.Connection) -> None:
    await add_worker(connection, queues=["default", "mail"])
    job = await enqueue(connection, queue="slow")
    text = await explain(connection, job)
    assert "do not serve queue slow: they serve default, mail. Start one with --queues slow." in text


async def test_a_job_behind_others(connection: asyncpg.Connection) -> None:
    await add_worker(connection, name="web1:7")
    before, job, urgent = [await enqueue(connection, priority=priority) for priority in (3, 3, 9)]
    await enqueue(connection, priority=3)
    text = await explain(connection, job)
    assert "2 jobs stand before it in queue default (priority 3)" in text
    assert "can be run by worker" in text
    assert "web1:7" in text
    assert "one job stands" in await explain(connection, before)
    assert "nothing stands before it" in await explain(connection, urgent)


async def test_a_job_behind_very_many(connection: asyncpg.Connection) -> None:
    await add_worker(connection)
    await connection.execute("insert into howdah.jobs (kind) select 'work' from generate_series(1, 10500)")
    job = await enqueue(connection)
    assert "more than 10000 jobs stand before it" in await explain(connection, job)


async def test_a_suspect(connection: asyncpg.Connection) -> None:
    worker = await add_dead_worker(connection)
    jobs = [await enqueue(connection) for _ in range(2)]
    await claim(connection, worker)
    await connection.fetch("select howdah.rescue()")
    await add_worker(connection)
    text = await explain(connection, jobs[1])
    assert (
        "a worker died while it held this job, so it is a suspect: it runs alone, and one suspect is before it" in text
    )


async def test_a_running_job(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection, name="web1:7", silent_for=4)
    job = await enqueue(connection)
    held = await claim_one(connection, worker)
    assert "was claimed" in await explain(connection, job)
    await write_start(connection, held)
    text = await explain(connection, job)
    assert f"in attempt 1 of 3, in the hands of worker {worker} (web1:7), whose heartbeat is 4 s old." in text
    await connection.execute("select howdah.cancel($1, 'ada')", job)
    assert "ada asked" in await explain(connection, job)
    await connection.execute("update howdah.workers set beat_at = now() - interval '1 hour'")
    assert "it is dead, and any other worker takes the job back" in await explain(connection, job)
    await connection.execute("delete from howdah.workers")
    assert "whose worker is gone" in await explain(connection, job)


async def test_a_job_past_its_timeout(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection)
    job = await enqueue(connection, timeout=timedelta(milliseconds=1))
    await write_start(connection, await claim_one(connection, worker))
    await connection.execute("select pg_sleep(0.01)")
    assert "it has run past its timeout of 1 ms" in await explain(connection, job)


async def test_a_job_that_waits_for_others(connection: asyncpg.Connection) -> None:
    first, second = await enqueue(connection), await enqueue(connection, delay=timedelta(hours=1))
    job = await enqueue(connection, depends_on=[first, second])
    assert f"waits for 2 of the jobs that it depends on: {first} (ready), {second} (scheduled)." in await explain(
        connection, job
    )
    many = [await enqueue(connection, "other") for _ in range(7)]
    job = await enqueue(connection, depends_on=many)
    assert "waits for 7 of the jobs" in await explain(connection, job)
    assert ", …." in await explain(connection, job)


async def test_a_job_behind_a_batch(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await connection.fetchval("select howdah.create_batch('work')")
        members = [await enqueue(connection, batch=batch) for _ in range(3)]
    await ack(connection, completed((await claim(connection, count=1))[0]))
    text = await explain(connection, batch)
    assert f"waits for the end of its batch: 2 of its jobs live, such as {members[1]} (ready); 1 have ended." in text


async def test_jobs_that_have_ended(connection: asyncpg.Connection) -> None:
    done, gone, lost = [await enqueue(connection) for _ in range(3)]
    held = {job.id: job for job in await claim(connection)}
    await ack(
        connection,
        completed(held[done], run=2.5, age=3),
        cancelled(held[gone], "ada", "no"),
        dead(held[lost], "bad\nnews"),
    )
    assert "in attempt 1 of 3, after" in await explain(connection, done)
    assert "was cancelled" in await explain(connection, gone)
    assert "ago by ada: no. howdah retry" in await explain(connection, gone)
    text = await explain(connection, lost)
    assert "in attempt 1 of 3: ValueError: bad. howdah retry" in text
    again = await connection.fetchval("select howdah.retry($1)", lost)
    assert (await explain(connection, lost)).endswith(f"It was tried again as job {again}.")


async def test_a_job_that_expires(connection: asyncpg.Connection) -> None:
    await add_worker(connection)
    expires = await connection.fetchval("select now() + interval '1 hour'")
    job = await enqueue(connection, expires_at=expires)
    assert " It expires at 20" in await explain(connection, job)


async def test_a_job_that_is_nowhere(connection: asyncpg.Connection) -> None:
    with refused("JB007", naming="there is no job 99"):
        await explain(connection, 99)


@pytest.mark.parametrize(
    ("length", "text"),
    [("0.4 s", "400 ms"), ("-3 s", "3 s"), ("119 s", "119 s"), ("5 min", "5 min"), ("3 h", "3 h"), ("50 h", "2 days")],
)
async def test_lengths_of_time_are_for_people(connection: asyncpg.Connection, length: str, text: str) -> None:
    assert await connection.fetchval(f"select howdah.humane(interval '{length}')") == text
