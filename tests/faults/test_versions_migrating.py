"""Migrations while workers drain: nobody waits behind one that waits for a lock, and no job is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many
from support.releases import NEXT_NAME, next_release

from howdah.errors import MigrationError
from howdah.migrate import migrate

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import Connect, StartDaemon
    from support.figures import Figures


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return next_release(tmp_path / "newer")


@pytest.mark.fault(
    "Versions", "the schema is migrated while two workers drain", "both work on, nothing is lost or doubled"
)
async def test_a_migration_under_load_loses_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, newer: Path, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = [await daemon(JOURNAL, queues="default:20") for _ in range(2)]
    jobs = [{"kind": kind, "payload": {}} for kind in ("innocent", "innocent", "effect")]
    for _ in range(3):
        await enqueue_many(connection, *(jobs * 150))
    await aeventually(lambda: has_ended(connection, 100))
    migrating = asyncio.create_task(migrate(await connect(), folder=newer))
    while not migrating.done():
        await enqueue_many(connection, *(jobs * 10))
        await asyncio.sleep(0.01)
    assert await migrating == [NEXT_NAME]
    assert await connection.fetchval("select count(*) from pg_proc where prosrc like '%once more%'") == 4
    figures.faults += 1
    done = time.monotonic()
    await end_of(connection, await enqueue(connection, "innocent", {}, priority=10))
    figures.recovered(time.monotonic() - done)
    assert time.monotonic() - done < 5
    await aeventually(lambda: is_empty(connection), timeout=40)
    await checker.check(figures=figures)
    assert await connection.fetchval("select max(attempt) from howdah.job_history") == 1
    for worker in workers:
        assert not [line for line in worker.logs() if line.get("level") == "error"], worker.output()
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Versions",
    "a user's open transaction keeps a migration from its lock",
    "nobody waits behind it, and it comes through after the end",
)
async def test_a_migration_that_waits_for_a_lock_holds_up_nobody(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, newer: Path, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await daemon(JOURNAL)
    user = await connect()
    open_one = user.transaction()
    await open_one.start()
    await enqueue(user, "innocent", {})
    migrating = asyncio.create_task(migrate(await connect(), folder=newer))
    figures.faults += 1
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        await end_of(connection, await enqueue(connection, "innocent", {}))
        slowest = max(slowest, time.monotonic() - began)
    assert not migrating.done()
    assert slowest < 2
    await open_one.commit()
    committed = time.monotonic()
    async with asyncio.timeout(15):
        assert await migrating == [NEXT_NAME]
    figures.recovered(time.monotonic() - committed)
    await aeventually(lambda: is_empty(connection))
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Versions", "a transaction that does not end keeps a migration from its lock", "it gives up and names the holder"
)
async def test_a_migration_that_gets_no_lock_says_who_holds_it(
    connection: asyncpg.Connection, connect: Connect, newer: Path
) -> None:
    holder = await connect(server_settings={"application_name": "the shop"})
    await holder.execute("begin; select count(*) from howdah.jobs")
    with pytest.raises(MigrationError) as caught:
        await migrate(connection, folder=newer, patience=1)
    assert f"process {holder.get_server_pid()} (the shop, idle in transaction) has held jobs" in str(caught.value)
    assert f"select pg_terminate_backend({holder.get_server_pid()})" in str(caught.value)
    assert await connection.fetchval("select to_regclass('howdah.notes')") is None
    await holder.execute("rollback")
    assert await migrate(connection, folder=newer) == [NEXT_NAME]


async def has_ended(connection: asyncpg.Connection, count: int) -> bool:
    ended: int = await connection.fetchval("select count(*) from howdah.job_history")
    return ended >= count
