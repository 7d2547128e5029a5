"""More than one server: what may be read from a standby, and queues split over two databases."""

from __future__ import annotations

import logging
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
    from collections.abc import Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon

log = logging.getLogger("tests.growing")

pytestmark = pytest.mark.deploy


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    tmp_path.chmod(0o711)
    with EmbeddedPostgres(tmp_path / "primary", settings=PRIMARY) as server:
        yield server


async def test_whatever_only_asks_is_answered_by_a_standby(
    daemon: StartDaemon, primary: EmbeddedPostgres, tmp_path: Path
) -> None:
    connection = await connect_to(Database(primary.url(), "postgres"))
    await migrate(connection)
    async with Standby(primary, tmp_path / "second") as standby:
        worker = await daemon(NOOP + """
@handler("fails", max_attempts=2, backoff=lambda attempt: 600.0)
async def fails(job: Job) -> None: raise ValueError("always")
""", url=primary.url())  # fmt: skip
        done = await enqueue(connection)
        failed = await enqueue(connection, "fails", queue="default")
        await connection.execute(
            "select howdah.set_limit('none', concurrency => 0), howdah.schedule('daily', '0 3 * * *', 'work')"
        )
        limited = await enqueue(connection, limits=["none"])
        await end_of(connection, done)
        await aeventually(
            lambda: connection.fetchval("select state = 'retrying' from howdah.job_status where id = $1", failed)
        )
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
        assert [line for line in doctor.out.splitlines() if line.startswith("fail")] == [
            line for line in doctor.out.splitlines() if "standby" in line
        ][:1]
        # Whatever writes is refused in a line.
        assert "read-only" in (await cli("enqueue", "work", url=standby.url)).complaint
        assert "read-only" in (await cli("pause", "mail", url=standby.url)).err
        assert await worker.stop() == 0
        connection.terminate()


async def caught_up(primary: asyncpg.Connection) -> bool:
    behind = await primary.fetchval(
        "select min(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) from pg_stat_replication"
    )
    return bool(behind == 0)


async def test_queues_that_are_split_over_two_databases_each_have_their_daemons_and_nothing_crosses(
    daemon: StartDaemon, connection: asyncpg.Connection
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


HANDLERS = """
@handler("work")
async def work(job: Job) -> None: ...

@handler("all", transaction=True, timeout=60)
async def all_of_it(job: Job, connection: asyncpg.Connection) -> None:
    async def once() -> int: return 41
    await job.step("one", once)
    await job.enqueue("work")
    await connection.execute("select pg_sleep(0.5)")
"""


async def test_a_worker_holds_as_many_connections_as_the_page_says(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS, queues="default:30", pool_size=7)
    await end_of(connection, await enqueue(connection, "work"))
    at_rest = await held(connection)
    await connection.execute("select howdah.set_limit('key', concurrency => 100)")
    await enqueue_many(
        connection, *({"kind": "all"} for _ in range(40)), *({"kind": "work", "limits": ["key"]} for _ in range(5))
    )
    most = 0
    while not await is_empty(connection):
        most = max(most, sum((await held(connection)).values()))
        await worker.get("/stats")
    await aeventually(lambda: worker.metric("howdah_leading"), timeout=30)
    log.warning("%s at rest, %s at most, %s", at_rest, most, await held(connection))
    assert sum(at_rest.values()) <= 6, at_rest
    assert most <= 10 + 7
    assert len((await held(connection)).keys()) >= 10
    assert await worker.stop() == 0


async def held(connection: asyncpg.Connection) -> dict[str, int]:
    rows = await connection.fetch(
        "select application_name, count(*) as held from pg_stat_activity where application_name like 'howdah%' and datname = current_database() group by 1"
    )
    return dict(rows)
