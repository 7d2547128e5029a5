"""A job's way from plain SQL through a daemon into history, with and without LISTEN."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import end_of, is_empty, sleeps
from support.jobs import enqueue, enqueue_many, status
from support.proxy import proxied

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon

#: A poll interval at which only a wake, or the engine's own knowledge, can explain a prompt start.
NEVER = 60
PROMPT = 1.0


async def test_a_job_enqueued_by_plain_sql_is_run_and_its_history_tells_everything(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("greet")
        async def greet(job: Job) -> dict[str, Any]:
            await asyncio.sleep(0.05)
            return {"greeting": f"Hello {job.payload['name']}", "attempt": job.attempt, "queue": job.queue,
                    "subject": job.subject, "headers": job.headers, "priority": job.priority, "kind": job.kind}
        """
    )
    row = await connection.fetchrow(
        """select * from howdah.enqueue('greet', '{"name": "Ada"}', subject => 'user:1', priority => 3,
        unique_key => 'ada', headers => '{"trace": "t1"}')"""
    )
    job = row["id"]
    assert row["created"]

    ended = await end_of(connection, job)
    assert ended["state"] == "completed"
    assert ended["result"] == {
        "greeting": "Hello Ada",
        "attempt": 1,
        "queue": "default",
        "subject": "user:1",
        "headers": {"trace": "t1"},
        "priority": 3,
        "kind": "greet",
    }
    assert (ended["attempt"], ended["crashes"], ended["errors"]) == (1, 0, None)
    assert ended["worker"] == worker.worker
    assert ended["unique_key"] == "ada"
    assert ended["created_at"] <= ended["claimed_at"] <= ended["started_at"] <= ended["finished_at"]
    # uvloop counts a sleep from the beginning of its turn, and in whole milliseconds.
    assert 0.045 <= ended["duration"].total_seconds() < 1
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0


async def test_a_wake_starts_a_job_at_once_however_rare_the_polls(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(poll_interval=NEVER)
    waits = []
    for _ in range(10):
        job = await enqueue(connection)
        await end_of(connection, job)
        waits.append(await wait_of(connection, job))
    # The first may come while the daemon has not yet said that it sleeps.
    assert max(waits) < PROMPT
    assert sorted(waits)[5] < 0.05


async def test_a_daemon_that_idles_is_woken_when_an_open_transaction_commits(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(poll_interval=NEVER)
    await aeventually(lambda: sleeps(connection))
    transaction = connection.transaction()
    await transaction.start()
    job = await enqueue(connection)
    wakes = await worker.metric("howdah_wakes_total")
    await transaction.commit()
    await end_of(connection, job, timeout=PROMPT)
    assert await worker.metric("howdah_wakes_total") > wakes


async def test_many_jobs_in_one_call_are_all_run_once(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await daemon()
    rows = await enqueue_many(connection, *({"kind": "work", "payload": {"n": n}} for n in range(3000)))
    assert len(rows) == 3000
    await aeventually(lambda: is_empty(connection), timeout=20)
    counts = await connection.fetchrow(
        """select count(*) as jobs, count(distinct id) as ids, count(*) filter (where state = 'completed') as completed,
        count(distinct (result -> 'echo' ->> 'n')) as payloads from howdah.job_history"""
    )
    assert tuple(counts) == (3000, 3000, 3000, 3000)


async def test_where_listen_is_impossible_jobs_are_found_by_polling(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connect is refused
        worker = await daemon(
            listen_database_url=f"postgresql://postgres@127.0.0.1:{taken.getsockname()[1]}/postgres",
            poll_interval=NEVER,
        )
        for _ in range(3):
            job = await enqueue(connection)
            await end_of(connection, job, timeout=PROMPT)
        assert await worker.metric("howdah_listener_up") == 0
        assert await worker.metric("howdah_polls_total") > 0
        assert await worker.metric("howdah_wakes_total") == 0
        assert any(line["connection"] == "listen" for line in worker.log_events("database is away, waiting"))


async def test_a_listener_that_is_cut_off_comes_back_and_no_job_waits_for_it(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    async with proxied(database.url) as wire:
        worker = await daemon(listen_database_url=wire.url, poll_interval=NEVER)
        await aeventually(lambda: listener_is(worker, 1))
        await aeventually(lambda: sleeps(connection))
        wire.refusing = True
        wire.cut()
        await aeventually(lambda: listener_is(worker, 0))
        await end_of(connection, await enqueue(connection), timeout=PROMPT)

        wire.refusing = False
        await aeventually(lambda: listener_is(worker, 1))
        assert len(worker.log_events("hears no wakes, jobs are found by polling")) == 1
        assert len(worker.log_events("hears wakes again")) == 1


async def test_a_terminated_listener_is_replaced_and_hears_wakes(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(poll_interval=NEVER)
    await aeventually(lambda: listener_is(worker, 1))
    await cut_listener(connection)
    await aeventually(lambda: worker.log_events("hears wakes again"))
    assert await worker.metric('howdah_reconnects_total{connection="listen"}') == 1
    wakes = await worker.metric("howdah_wakes_total")
    await aeventually(lambda: sleeps(connection))
    await enqueue(connection)
    await aeventually(lambda: has_been_woken(worker, wakes), timeout=PROMPT)


async def wait_of(connection: asyncpg.Connection, job: int) -> float:
    row = await status(connection, job)
    return (row["started_at"] - row["created_at"]).total_seconds()


async def listener_is(worker: Daemon, value: float) -> bool:
    return await worker.metric("howdah_listener_up") == value


async def has_been_woken(worker: Daemon, before: float) -> bool:
    return await worker.metric("howdah_wakes_total") > before


async def cut_listener(connection: asyncpg.Connection) -> None:
    assert await connection.fetchval(
        """select bool_and(pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = 'howdah listen' and datname = current_database()"""
    )
