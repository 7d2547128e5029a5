"""More than one server: what may be read from a standby, and queues split over two databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cluster import connect_to, new_database
from support.commands import cli
from support.daemon import NOOP, Daemon
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.standby import PRIMARY, Standby

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate
from howdah.testing.databases import Database

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon

pytestmark = pytest.mark.deploy


async def test_whatever_only_asks_is_answered_by_a_standby(daemon: StartDaemon, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    with EmbeddedPostgres(tmp_path / "primary", settings=PRIMARY) as primary:
        connection = await connect_to(Database(primary.url(), "postgres"))
        await migrate(connection)
        async with Standby(primary, tmp_path / "second") as standby:
            worker = await daemon(NOOP + """
@handler("fails", max_attempts=2, backoff=lambda attempt: 600.0)
async def fails(job: Job) -> None: raise ValueError("always")
""", url=primary.url())  # fmt: skip
            done = await enqueue(connection)
            failed = await enqueue(connection, "fails", queue="default")
            await connection.execute("select howdah.set_limit('none', concurrency => 0), howdah.schedule('daily', '0 3 * * *', 'work')")
            limited = await enqueue(connection, limits=["none"])
            await end_of(connection, done)
            await aeventually(lambda: connection.fetchval("select state = 'retrying' from howdah.job_status where id = $1", failed))
            await aeventually(lambda: caught_up(connection), timeout=20)
            asked = [
                ("jobs",), ("jobs", "--json"), ("jobs", "--retrying"), ("jobs", "--group-by", "error"), ("jobs", "--kind", "work"), ("show", str(done)),
                ("show", str(failed)), ("explain", str(limited)), ("stats",), ("stats", "--json"), ("top", "--once"), ("limit", "list"), ("schedule", "list"),
                ("schedule", "next", "daily"), ("check",), ("wait", str(done)), ("migrate", "--check"),
            ]  # fmt: skip
            for words in asked:
                said = await cli(*words, url=standby.url)
                assert said.code == 0, (words, said.err or said.out)
            # It says what it is, and that no worker belongs there.
            doctor = await cli("doctor", url=standby.url, HOWDAH_HTTP_PORT="1")
            assert "fail   server        the address leads to a standby" in doctor.out
            assert doctor.code == 1
            assert [line for line in doctor.out.splitlines() if line.startswith("fail")] == [line for line in doctor.out.splitlines() if "standby" in line][:1]
            # Whatever writes is refused in a line.
            assert "read-only" in (await cli("enqueue", "work", url=standby.url)).complaint
            assert "read-only" in (await cli("pause", "mail", url=standby.url)).err
            assert await worker.stop() == 0
            connection.terminate()


async def caught_up(primary: asyncpg.Connection) -> bool:
    behind = await primary.fetchval("select min(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) from pg_stat_replication")
    return bool(behind == 0)


async def test_queues_that_are_split_over_two_databases_each_have_their_daemons_and_nothing_crosses(
    daemon: StartDaemon, database: Database, connection: asyncpg.Connection
) -> None:
    async with new_database() as other:
        second = await connect_to(other)
        mails: Daemon = await daemon(NOOP, url=other.url, queues="mail:10")
        rest: Daemon = await daemon(NOOP, queues="default:10")
        await enqueue_many(connection, *({"kind": "work"} for _ in range(200)))
        await enqueue_many(second, *({"kind": "work", "queue": "mail"} for _ in range(100)))
        await aeventually(lambda: is_empty(connection))
        await aeventually(lambda: is_empty(second))
        for where, worker, count in ((connection, rest, 200), (second, mails, 100)):
            rows = await where.fetch("select leased_by, count(*) as jobs from howdah.job_history group by 1")
            assert [tuple(row) for row in rows] == [(worker.worker, count)]
        assert await mails.stop() == await rest.stop() == 0
        second.terminate()
