"""Servers that are nearly PostgreSQL: without advisory locks, without LISTEN and NOTIFY. What is optional is done without, and said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support import nearly
from support.cluster import connect_to, new_database
from support.commands import cli
from support.daemon import howdah
from support.eventually import aeventually
from support.facts import RECORD, end_of, is_empty, make_runs
from support.jobs import enqueue, enqueue_many
from support.logins import login, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

REFUSED = (
    "the server lacks advisory locks: rows of howdah.locks are locked instead",
    "the server lacks LISTEN and NOTIFY: jobs are found by polling",
)


@pytest.fixture
async def kin() -> AsyncIterator[Database]:
    """A database whose server has neither, before the schema came."""
    async with new_database(empty=True) as database:
        connection = await connect_to(database)
        await nearly.take_away(connection, *nearly.LOCKS, *nearly.NOTIFICATIONS)
        await connection.execute("grant create on schema public to public")
        await connection.close()
        said = await cli("migrate", url=database)
        assert said.code == 0, said.err
        yield database


@pytest.mark.fault(
    "Server", "no advisory locks, no LISTEN, no NOTIFY", "said once at start; limits hold, jobs are found by polling"
)
async def test_without_advisory_locks_listen_and_notify_everything_is_done_and_limits_hold(
    kin: Database, daemon: StartDaemon, figures: Figures
) -> None:
    connection = await connect_to(kin)
    await make_runs(connection)
    await connection.execute("grant all on public.runs to public")
    await connection.execute("select howdah.set_limit('three', concurrency => 3)")
    async with login(kin, "howdah_worker") as worker_login, nearly.without_listen(worker_login.url) as address:
        # Nobody here is above the server's refusals.
        assert await howdah_lacks(worker_login) == ["advisory_locks", "notifications"]
        workers = [await daemon(RECORD, url=address, queues="default:10") for _ in range(2)]
        jobs = [row["id"] for row in await enqueue_many(
            connection,
            *({"kind": "record", "limits": ["three"], "payload": {"seconds": 0.02}} for _ in range(120)),
            *({"kind": "record", "fifo_key": "line", "payload": {"seconds": 0.01}} for _ in range(20)),
            *({"kind": "record", "delay": "0.2 s"} for _ in range(20)),
            *({"kind": "record"} for _ in range(40)),
        )]  # fmt: skip
        await connection.execute(
            "select howdah.enqueue_coalesced('record', '{}', 'key', interval '0.1 s') from generate_series(1, 50)"
        )
        await aeventually(lambda: is_empty(connection), 40)
        figures.jobs, figures.faults = len(jobs), 1
        figures.lost = len(jobs) - await connection.fetchval(
            "select count(*) from howdah.job_history where id = any ($1) and state = 'completed'", jobs
        )
        figures.doubled = await connection.fetchval("select count(*) - count(distinct job) from public.runs")
        assert (figures.lost, figures.doubled) == (0, 0)
        assert await most_at_once(connection, "limits = '{three}'") == 3
        assert await most_at_once(connection, "fifo_key = 'line'") == 1
        # Fifty events, one run.
        await aeventually(lambda: connection.fetchval("select not exists (select from howdah.events)"))
        await aeventually(lambda: is_empty(connection))
        assert await connection.fetchval("select count(*) from public.runs") == len(jobs) + 1
        for worker in workers:
            assert [worker.output().count(line) for line in REFUSED] == [1, 1]
            await aeventually(lambda worker=worker: worker.output().count("hears no wakes") == 1)
            assert await worker.metric("howdah_listener_up") == 0
        said = await cli("doctor", "--json", url=worker_login, HOWDAH_HTTP_PORT="1", HOWDAH_LISTEN_DATABASE_URL=address)
        lines = {one["topic"]: one for one in json.loads(said.out)["findings"] if one["level"] in {"warn", "fail"}}
        assert lines["lacks"]["level"] == lines["listen"]["level"] == "warn"
        assert "without LISTEN and NOTIFY" in lines["listen"]["says"]
        assert [await worker.stop() for worker in workers] == [0, 0]
    connection.terminate()


@pytest.mark.fault(
    "Server",
    "advisory locks are refused to a login whose schema relies on them",
    "the worker says so and exits 78; howdah migrate mends it",
)
async def test_a_server_that_lacks_what_the_schema_relies_on_is_refused_with_what_to_do(
    database: Database, daemon: StartDaemon, tmp_path: Path
) -> None:
    connection = await connect_to(database)
    await nearly.take_away(connection, *nearly.LOCKS)
    async with login(database, "howdah_worker") as worker_login:
        refused = await daemon(url=worker_login.url, ready=False)
        assert await refused.wait() == 78
        assert (
            "the server has no advisory locks for this login, and the schema relies on them: stop all workers, then howdah migrate"
            in refused.output()
        )
        done = howdah("migrate", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
        assert done.returncode == 0, done.stderr
        await daemon(url=worker_login.url)
        assert (await end_of(connection, await enqueue(connection)))["state"] == "completed"
    assert await connection.fetchval("select notifications and not advisory_locks from howdah.settings")
    connection.terminate()


async def howdah_lacks(database: Database) -> Any:
    connection = await connect_to(database)
    try:
        assert name_of(database) == await connection.fetchval("select current_user")
        return await connection.fetchval("select howdah.lacks()")
    finally:
        await connection.close()


async def most_at_once(connection: Any, which: str) -> int:
    most: int = await connection.fetchval(
        f"""select max(open) from (select sum(step) over (order by at, step) as open from (
          select r.started_at as at, 1 as step from public.runs r join howdah.job_history h on h.id = r.job where {which}
          union all select r.ended_at, -1 from public.runs r join howdah.job_history h on h.id = r.job where {which}) steps) opened"""
    )
    return most


async def test_rows_that_are_locked_instead_keep_others_out_until_the_commit(kin: Database) -> None:
    async with login(kin, "howdah_worker") as worker_login:
        one, other = await connect_to(worker_login), await connect_to(worker_login)
        try:
            begun = one.transaction()
            await begun.start()
            for key in (-7, 2147483647, 1):
                assert await one.fetchval("select howdah.try_lock(7316043, $1)", key)
                assert await one.fetchval("select howdah.try_lock(7316043, $1)", key), "it is ours already"
                assert not await other.fetchval("select howdah.try_lock(7316043, $1)", key)
            assert await other.fetchval("select howdah.try_lock(7316043, 8) and howdah.try_lock(7316042, 1)")
            await begun.commit()
            assert await other.fetchval("select howdah.try_lock(7316043, -7)")
        finally:
            one.terminate()
            other.terminate()
