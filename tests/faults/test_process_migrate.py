"""`howdah migrate` killed with -9 at any point: everything is there or nothing is, and the next one finishes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support.cluster import connect_to, new_database
from support.daemon import clean_environment, howdah
from support.eventually import aeventually
from support.gate import Gate
from support.holding_proxy import holding
from support.jobs import enqueue, status
from support.rights import foreign_objects, wrong_rights

from howdah.migrate import read_migrations
from howdah.queries import sql_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg
    from support.cluster import Database
    from support.figures import Figures

MIGRATIONS = read_migrations(sql_folder() / "migrations")


@pytest.fixture
async def empty_database() -> AsyncIterator[Database]:
    """A database without the engine's schema."""
    async with new_database(empty=True) as database:
        yield database


@pytest.fixture
async def empty(empty_database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect_to(empty_database)
    yield connection
    connection.terminate()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the commands run. None of them outlives the test."""
    yield tmp_path
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.mark.fault("Process", "howdah migrate is killed at any point", "all or nothing, and the next one finishes")
async def test_a_migrate_that_is_killed_at_any_point_leaves_all_or_nothing_and_the_next_one_finishes(
    empty: asyncpg.Connection, empty_database: Database, folder: Path, figures: Figures
) -> None:
    between = MIGRATIONS[4].text.split("\n")[0]
    for words in ("pg_advisory_xact_lock", between, "COMMIT"):
        async with killed_at(folder, empty_database, question=words):
            figures.faults += 1
        await aeventually(lambda: is_alone(empty))
        assert await is_bare(empty), words

    # In the middle of a file; and the server does not notice, so the lock is still held when the next one begins.
    gate = await Gate(empty).shut_at("howdah.ack(")
    process = start(folder, empty_database.url)
    await gate.reached()
    process.kill()
    figures.faults += 1
    after = start(folder, empty_database.url)
    await aeventually(lambda: waits_for_its_turn(empty))
    await gate.open()
    assert await asyncio.to_thread(after.wait, 30) == 0
    await is_whole(empty)
    figures.jobs += 1

    # Right after the commit: there is nothing left to do.
    await empty.execute("drop event trigger gate; drop schema howdah cascade")
    async with killed_at(folder, empty_database, answer="COMMIT"):
        figures.faults += 1
    await is_whole(empty)
    again = howdah("migrate", folder=folder, HOWDAH_DATABASE_URL=empty_database.url)
    assert (again.returncode, "0001" in again.stdout) == (0, False), again.stderr
    await is_whole(empty)
    figures.jobs += 1


@asynccontextmanager
async def killed_at(folder: Path, database: Database, *, question: str = "", answer: str = "") -> AsyncIterator[None]:
    """Run `howdah migrate` and kill it before it says these words, or before it hears the answer to them."""
    async with holding(database.url) as wire:
        hold = wire.hold_question(question) if question else wire.hold_answer(answer)
        process = start(folder, wire.url)
        await hold.reached()
        process.kill()
        yield


def start(folder: Path, url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "howdah", "migrate"],
        cwd=folder,
        env=clean_environment(HOWDAH_DATABASE_URL=url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    STARTED.append(process)
    return process


async def is_whole(connection: asyncpg.Connection) -> None:
    """Fail unless the whole schema is there, with its rights, and takes a job."""
    names = await connection.fetch("select name from howdah.migrations where source = 'howdah' order by version")
    assert [row["name"] for row in names] == [migration.name for migration in MIGRATIONS]
    assert await wrong_rights(connection) == []
    assert await foreign_objects(connection) == []
    job = await enqueue(connection)
    assert (await status(connection, job))["state"] == "ready"


async def is_bare(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select to_regnamespace('howdah') is null"))


async def is_alone(connection: asyncpg.Connection) -> bool:
    others: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    return others == 0


async def waits_for_its_turn(connection: asyncpg.Connection) -> bool:
    found: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory' and query like '%pg_advisory_xact_lock($1)'"
    )
    return found == 1
