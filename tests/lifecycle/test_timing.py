"""When a job starts: never before its time, soon after it, the urgent first; and when it does not start at all."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import RECORD, end_of, has_ended, is_empty, make_runs, runs, sleeps, state_of
from support.jobs import enqueue, enqueue_many, enqueued, status

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon

NEVER = 60
LATE = 0.5


async def test_delayed_jobs_start_at_their_time_and_never_before_it(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    delays = [0.05 * n for n in range(1, 31)]
    # Half of them before the daemon comes, half while it works.
    await enqueue_many(connection, *({"kind": "record", "delay": f"{delay} s"} for delay in delays[::2]))
    await daemon(RECORD)
    await enqueue_many(connection, *({"kind": "record", "delay": f"{delay} s"} for delay in delays[1::2]))
    moment = await connection.fetchval("select clock_timestamp()")
    due = dict(await connection.fetch("select id, due_at from howdah.jobs where due_at is not null"))
    assert len(due) >= 15
    await aeventually(lambda: is_empty(connection))
    started = dict(await runs(connection, "job", "started_at"))
    lateness = {job: (started[job] - at).total_seconds() for job, at in due.items()}
    assert min(lateness.values()) >= 0
    # What was due before the daemon had come is late for that reason.
    assert max(late for job, late in lateness.items() if due[job] > moment) < LATE


async def test_an_idle_daemon_hears_of_a_job_that_is_due_before_its_next_look(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(poll_interval=NEVER)
    await enqueue(connection, delay=timedelta(hours=1))
    await aeventually(lambda: sleeps(connection))
    await aeventually(lambda: looks_rarely(connection))
    job = await enqueue(connection, delay=timedelta(seconds=0.3))
    ended = await end_of(connection, job)
    due = await connection.fetchval("select ready_at from howdah.job_history where id = $1", job)
    assert 0 <= (ended["started_at"] - due).total_seconds() < LATE


async def test_a_retry_starts_when_its_backoff_is_over(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await make_runs(connection)
    await daemon(
        RECORD
        + """
@handler("fails twice", backoff=lambda attempt: 0.3)
async def fails_twice(job: Job) -> None:
    await end(await begin(job))
    if job.attempt < 3: raise ValueError("again")
""",
        poll_interval=NEVER,
    )
    await end_of(connection, await enqueue(connection, "fails twice"))
    times = await runs(connection, "started_at", "ended_at")
    pauses = [(after[0] - before[1]).total_seconds() for before, after in pairwise(times)]
    assert len(pauses) == 2
    assert all(0.3 <= pause < 0.3 + LATE for pause in pauses)


async def test_a_retry_that_is_sooner_than_those_before_it_starts_when_its_backoff_is_over(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        @handler("fails", backoff=lambda attempt: 10)
        async def fails(job: Job) -> None: raise ValueError("again")

        @handler("fails briefly", backoff=lambda attempt: 0.3)
        async def fails_briefly(job: Job) -> None:
            if job.attempt == 1: raise ValueError("again")
        """,
        poll_interval=NEVER,
    )
    later = await enqueue(connection, "fails")

    async def waits_for_its_retry() -> bool:
        return await state_of(connection, later) == "retrying"

    await aeventually(waits_for_its_retry)
    await aeventually(lambda: sleeps(connection))
    await aeventually(lambda: looks_rarely(connection))
    ended = await end_of(connection, await enqueue(connection, "fails briefly"))
    assert (ended["started_at"] - ended["created_at"]).total_seconds() < 0.3 + LATE
    assert await waits_for_its_retry()


async def test_the_urgent_go_first_and_equals_in_the_order_of_their_coming(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    rows = await enqueue_many(connection, *({"kind": "record", "priority": n % 11} for n in range(33)))
    await daemon(RECORD, queues="default:1")
    await aeventually(lambda: is_empty(connection))
    expected = sorted(range(33), key=lambda n: (-(n % 11), n))
    ids = {row["ordinal"] - 1: row["id"] for row in rows}
    assert await runs(connection, "job") == [ids[n] for n in expected]


async def test_an_urgent_job_overtakes_those_that_wait(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await make_runs(connection)
    await daemon(RECORD, queues="default:2")
    await enqueue_many(connection, *({"kind": "record", "payload": {"seconds": 0.05}} for _ in range(40)))
    await aeventually(lambda: runs(connection, "job"))
    urgent = await enqueue(connection, "record", priority=10)
    await aeventually(lambda: is_empty(connection))
    assert (await runs(connection, "job")).index(urgent) < 20


async def test_the_same_unique_key_is_one_job_until_it_has_ended(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    worker = await daemon(
        RECORD
        + """
@handler("gate")
async def gate(job: Job) -> None:
    run = await begin(job)
    while not Path("enough").exists(): await asyncio.sleep(0.01)
    await end(run)
"""
    )
    first = await enqueued(connection, "gate", unique_key="k")
    await aeventually(lambda: runs(connection, "job"))
    second = await enqueued(connection, "gate", unique_key="k")
    assert (second["id"], second["created"]) == (first["id"], False)
    (worker.folder / "enough").touch()
    await end_of(connection, first["id"])
    third = await enqueued(connection, "gate", unique_key="k")
    assert third["created"]
    await end_of(connection, third["id"])
    assert await runs(connection, "job") == [first["id"], third["id"]]


async def test_a_job_that_has_expired_is_cancelled_and_never_run(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    now = await connection.fetchval("select clock_timestamp()")
    expired = await enqueue(connection, "record", expires_at=now - timedelta(seconds=1))
    lasting = await enqueue(connection, "record", expires_at=now + timedelta(hours=1))
    await daemon(RECORD)
    ended = await end_of(connection, expired)
    assert (ended["state"], ended["cancelled_by"]) == ("cancelled", "howdah")
    assert "expired" in ended["cancel_reason"]
    assert (await end_of(connection, lasting))["state"] == "completed"
    assert await runs(connection, "job") == [lasting]


async def test_jobs_of_unknown_kinds_and_other_queues_stay_ready_while_others_run(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    strange = [await enqueue(connection, "strange", priority=10) for _ in range(20)]
    foreign = await enqueue(connection, queue="elsewhere")
    await daemon(queues="default:2")
    jobs = [await enqueue(connection) for _ in range(20)]
    await aeventually(lambda: has_ended(connection, *jobs))
    assert {await state_of(connection, job) for job in [*strange, foreign]} == {"ready"}
    assert {(await status(connection, job))["attempt"] for job in [*strange, foreign]} == {0}


async def test_a_paused_queue_is_not_claimed_and_its_resumption_is_heard(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await connection.execute("insert into howdah.queues (name, paused_at, paused_by) values ('mail', now(), 'me')")
    await daemon(queues="default:2,mail:2")
    paused = await enqueue(connection, queue="mail")
    for _ in range(5):
        await end_of(connection, await enqueue(connection))
    assert await state_of(connection, paused) == "ready"
    await connection.execute("delete from howdah.queues")
    assert (await end_of(connection, paused))["state"] == "completed"


async def looks_rarely(connection: asyncpg.Connection) -> bool:
    """Tell whether the upkeep has been silent for so long that its next look, each pause half as long again, is a second away."""
    silence = await connection.fetchval(
        """select extract(epoch from clock_timestamp() - max(state_change)) from pg_stat_activity
        where application_name = 'howdah spare' and datname = current_database()"""
    )
    return bool(silence > 2.3)
