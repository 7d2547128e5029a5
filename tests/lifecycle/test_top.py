"""The live view: what is there is on the screen, however narrow, and nothing that a terminal would obey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.daemon import howdah
from support.jobs import add_worker, claim, enqueue, enqueue_many, write_start

from howdah.top.frame import sparkline

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from support.cluster import Database


@pytest.mark.parametrize("columns", [60, 80, 120])
async def test_one_frame_shows_queues_workers_and_running_jobs_within_the_screen(
    connection: asyncpg.Connection, database: Database, tmp_path: Path, columns: int
) -> None:
    worker = await add_worker(connection, name="evil\x1b[31m")
    job = await enqueue(connection, "work", subject="course:42")
    [held] = await claim(connection, worker)
    await write_start(connection, held)
    await enqueue_many(connection, *({"kind": "work", "queue": "mail"} for _ in range(1234)))
    await connection.execute("select howdah.pause('mail')")
    done = howdah(
        "top", "--once", "--interval", "0.2",
        folder=tmp_path, HOWDAH_DATABASE_URL=database.url, COLUMNS=str(columns), NO_COLOR="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "\x1b" not in done.stdout
    assert any(line.startswith("mail") and "1,234" in line and "paused" in line for line in lines), done.stdout
    assert any(line.split()[:2] == [str(job), "work"] and r"evil" in line for line in lines), done.stdout
    assert "1 worker" in lines[0]


async def test_without_a_database_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = howdah("top", "--once", folder=tmp_path, HOWDAH_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("howdah: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_sparkline_shows_the_newest_and_every_value_above_nothing() -> None:
    assert sparkline([5, 0, 1, 50, 100], 4) == " ▁▄█"
    assert sparkline([0, 0], 8) == "  "
    assert sparkline([], 8) == ""
