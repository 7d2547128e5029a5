"""Releases and schemas that are a step apart: the older worker works on, the newer one says what it lacks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.cluster import Database, connect_to, new_database
from support.daemon import howdah, write_handlers
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue, enqueue_many
from support.releases import NEWEST, NEXT_NAME, next_release, previous_release

from howdah.migrate import migrate
from howdah.version import __version__

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return next_release(tmp_path / "newer")


@pytest.fixture
async def older(tmp_path: Path) -> AsyncIterator[Database]:
    """A database at the schema of the release before: without the last migration."""
    folder = previous_release(tmp_path / "older")
    async with new_database(empty=True) as database:
        connection = await connect_to(database)
        await migrate(connection, folder=folder, roles=False)
        await connection.close()
        yield database


@pytest.mark.fault("Versions", "the schema is one release newer than the worker", "it works as before")
async def test_a_worker_works_on_the_schema_of_the_next_release(
    daemon: StartDaemon, connection: asyncpg.Connection, newer: Path, figures: Figures
) -> None:
    assert await migrate(connection, folder=newer) == [NEXT_NAME]
    checker = await Checker(connection).install()
    worker = await daemon(JOURNAL)
    jobs = [{"kind": kind, "payload": {}} for kind in ("innocent", "effect")] * 100
    await enqueue_many(connection, *jobs)
    await enqueue(connection, "innocent", {}, unique_key="key", delay=timedelta(seconds=0.2), limits=["some"])
    await aeventually(lambda: is_empty(connection))
    await checker.check(figures=figures)
    assert await connection.fetchval("select count(*) from howdah.job_status where state = 'completed'") == 201
    assert await worker.stop() == 0


@pytest.mark.fault("Versions", "an older release migrates a newer schema", "nothing is changed, and it says so")
async def test_an_older_release_leaves_a_newer_schema_as_it_is(
    database: Database, connection: asyncpg.Connection, newer: Path, tmp_path: Path
) -> None:
    await migrate(connection, folder=newer)
    await connection.execute(
        "grant select on howdah.notes to howdah_reader"
    )  # what the newer release's roles.sql would do
    url = {"HOWDAH_DATABASE_URL": database.url}
    done = howdah("migrate", folder=tmp_path, **url)
    assert (done.returncode, done.stdout.strip()) == (0, "up to date")
    assert await connection.fetchval("select has_table_privilege('howdah_reader', 'howdah.notes', 'select')")
    write_handlers(tmp_path)
    assert howdah("check", folder=tmp_path, **url).returncode == 0
    doctor = howdah("doctor", folder=tmp_path, **url)
    assert f"version {NEWEST + 1}" in doctor.stdout, doctor.stdout


@pytest.mark.fault(
    "Versions", "the worker is one release newer than the schema", "it is refused with a sentence, exit 78"
)
async def test_a_worker_of_the_next_release_says_what_the_schema_lacks(older: Database, tmp_path: Path) -> None:
    write_handlers(tmp_path)
    url = {"HOWDAH_DATABASE_URL": older.url}
    said = f"howdah: the schema is at version {NEWEST - 1}, this release needs {NEWEST}: run howdah migrate"
    done = howdah("run", folder=tmp_path, **url)
    assert (done.returncode, last_line(done)) == (78, said)
    done = howdah("check", folder=tmp_path, **url)
    assert done.returncode == 78
    assert last_line(done).startswith("howdah: pending migrations: ")
    assert howdah("migrate", "--check", folder=tmp_path, **url).returncode == 1
    assert howdah("migrate", "--no-roles", folder=tmp_path, **url).returncode == 0
    assert howdah("check", folder=tmp_path, **url).returncode == 0


@pytest.mark.fault(
    "Versions", "the schema asks for a newer worker", "who runs works on, who starts is refused, exit 78"
)
async def test_a_raised_minimum_stops_nobody_who_works_and_refuses_who_starts(
    daemon: StartDaemon, database: Database, connection: asyncpg.Connection, tmp_path: Path, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(JOURNAL)
    await connection.execute("update howdah.settings set min_worker_version = '99.0.0'")
    await enqueue_many(connection, *([{"kind": "innocent", "payload": {}}] * 20))
    await aeventually(lambda: is_empty(connection))
    await checker.check(figures=figures)
    write_handlers(tmp_path)
    done = howdah("run", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
    assert done.returncode == 78
    assert (
        last_line(done)
        == f"howdah: the schema asks for howdah 99.0.0 or newer, this is {__version__}: install a newer one"
    )
    assert await worker.stop() == 0


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]
