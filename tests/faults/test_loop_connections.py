"""Handlers that leave a mess in their connection, or never give it back: nobody else is hurt by it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

MESS = (
    JOURNAL
    + """
MESS = '''create temp table effect (id int); insert into effect values (1); create temp sequence numbers; select nextval('numbers');
  declare mine cursor with hold for select 1; listen somebody; select pg_advisory_lock(4712); set search_path = pg_temp;
  set role howdah_producer; set statement_timeout = '1h'; set session characteristics as transaction read only;'''

@handler("mess", max_attempts=1)
async def mess(job: Job) -> None:
    await journal(job, "start")
    async with job.connection() as connection:
        await connection.execute("create temp table other (id int)")
        await connection.execute("begin")
        await connection.execute("insert into public.effect values ($1, 1)", job.id)
        await connection.execute("set local search_path = public")
        if "committed" in job.payload:
            await connection.execute("rollback")
        for statement in MESS.split(";")[:-1] if "committed" in job.payload else ():
            await connection.execute(statement)
        await journal(job, "end")
        if "raises" in job.payload:
            raise ValueError("and leaves it so")

@handler("mess_in_transaction", transaction=True)
async def mess_in_transaction(job: Job, connection: asyncpg.Connection) -> None:
    await journal(job, "start")
    await connection.execute("create temp table effect (id int)")
    await connection.execute("select set_config('search_path', 'pg_temp', false), pg_advisory_lock(4712)")
    await journal(job, "end")

@handler("look")
async def look(job: Job) -> dict[str, Any]:
    await journal(job, "start")
    async with job.connection() as connection:
        began = connection.is_in_transaction()
        row = await connection.fetchrow('''select
            pg_backend_pid() as pid, current_user = session_user as own_role,
            current_setting('search_path') as path, current_setting('statement_timeout') as timeout,
            current_setting('transaction_read_only') as read_only,
            (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks,
            (select count(*) from pg_class where relnamespace = pg_my_temp_schema()) as temporary,
            (select count(*) from pg_cursors where name = 'mine') as cursors,
            (select count(*) from pg_listening_channels()) as channels''')
    await journal(job, "end")
    return {**row, "in_transaction": began}
"""
)


@pytest.mark.fault(
    "Event loop", "handlers leave a transaction, settings, a role, locks and temporary tables in their connection",
    "the next borrower finds nothing of it",
)  # fmt: skip
async def test_the_next_borrower_of_a_connection_inherits_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(MESS, pool_size=1, queues="default:1")
    clean = (await end_of(connection, await enqueue(connection, "look")))["result"]
    assert (clean["in_transaction"], clean["own_role"], clean["temporary"], clean["locks"]) == (False, True, 0, 0)
    messes = [("mess", {}), ("mess", {"raises": 1}), ("mess", {"committed": 1}), ("mess", {"committed": 1, "raises": 1}),
              ("mess_in_transaction", {})]  # fmt: skip
    for kind, payload in messes:
        messy = await enqueue(connection, kind, payload)
        looks = await enqueue(connection, "look")
        ended = await end_of(connection, messy)
        assert ended["state"] == ("dead" if "raises" in payload else "completed"), ended["error"]
        assert "leaves it so" in (ended["error"] or "leaves it so")
        assert (await end_of(connection, looks))["result"] == clean, (kind, payload)
        figures.faults += 1
    assert await connection.fetchval("select count(*) from public.effect") == 0
    await checker.check(figures=figures)


KEPT = (
    JOURNAL
    + """
KEPT = []

@handler("keep")
async def keep(job: Job) -> None:
    await quick_journal(job, "start")
    lent = job.connection()
    connection = await lent.__aenter__()
    KEPT.append((lent, connection))
    if job.payload["n"] % 3 == 0:
        await connection.execute("begin")
    if job.payload["n"] % 3 == 1:
        KEPT.append(asyncio.create_task(connection.execute("select pg_sleep(600)")))
        await asyncio.sleep(0)
    await quick_journal(job, "end")
"""
)


@pytest.mark.fault(
    "Event loop", "handlers never give their connections back", "they are taken back when the attempt ends; nobody starves"
)  # fmt: skip
async def test_connections_that_handlers_keep_are_taken_back_and_others_do_not_starve(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(KEPT, pool_size=2, queues="default:10")
    jobs = await enqueue_many(connection, *({"kind": "keep", "payload": {"n": n}} for n in range(12)))
    await aeventually(lambda: has_ended(connection, *(row["id"] for row in jobs)))
    ended = time.monotonic()
    after = [await enqueue(connection, "effect") for _ in range(4)]
    await aeventually(lambda: has_ended(connection, *after), 5)
    figures.faults += len(jobs)
    figures.recovered(time.monotonic() - ended)
    assert len(worker.log_events("a handler kept its connection, taking it back")) == len(jobs)
    assert await connection.fetchval("select bool_and(state = 'completed' and attempt = 1) from howdah.job_history")
    borrowed = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'howdah handler'"
    assert await connection.fetchval(borrowed + " and state like 'idle in transaction%'") == 0
    assert await worker.stop() == 0
    await checker.check(figures=figures)
