"""A backup by PostgreSQL's own tools, restored on another server: what runs there, what does not, and when it does."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.cluster import connect_to
from support.commands import cli
from support.daemon import Daemon
from support.eventually import aeventually
from support.facts import is_empty, outcomes
from support.jobs import enqueue, enqueue_many
from support.rights import wrong_rights

from howdah.embedded import EmbeddedPostgres
from howdah.embedded.binaries import find_binaries
from howdah.testing.databases import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon

pytestmark = pytest.mark.deploy

#: What it does shows in a folder of the daemon's own: a restored copy of the database knows nothing of it.
HANDLERS = """
@handler("mail", queue="mail")
async def mail(job: Job) -> None:
    Path(f"sent-{job.id}").touch()

@handler("hold", timeout=120)
async def hold(job: Job) -> None:
    Path(f"began-{job.id}").touch()
    while not Path("enough").exists(): await asyncio.sleep(0.02)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    tmp_path.chmod(0o711)
    with EmbeddedPostgres(tmp_path / "elsewhere", settings={"fsync": "off"}) as server:
        yield server


async def test_a_restored_copy_holds_every_job_and_runs_none_until_it_is_told_to(
    daemon: StartDaemon, database: Database, connection: asyncpg.Connection, elsewhere: EmbeddedPostgres, tmp_path: Path
) -> None:
    if not (find_binaries() / "pg_dump").exists():
        pytest.skip("this PostgreSQL has no pg_dump")
    worker = await daemon(HANDLERS, queues="default:5,mail:5", lease_ttl=2)
    done = [row["id"] for row in await enqueue_many(connection, *({"kind": "mail"} for _ in range(20)))]
    await aeventually(lambda: is_empty(connection))
    held = [row["id"] for row in await enqueue_many(connection, *({"kind": "hold"} for _ in range(3)))]
    await aeventually(lambda: all((worker.folder / f"began-{job}").exists() for job in held))
    await connection.execute("select howdah.schedule('daily', '0 3 * * *', 'mail')")
    later = await enqueue(connection, "mail", delay=timedelta(hours=1))
    await connection.execute("select howdah.pause('mail')")
    ready = await enqueue(connection, "mail")
    # As docs/operating.md has it.
    dump = tmp_path / "jobs.dump"
    tool("pg_dump", database.url, "-Fc", "-f", str(dump))
    copy = Database(elsewhere.url("postgres"), "postgres")
    roles = tool("pg_dumpall", database.url, "--roles-only", "--no-role-passwords", place="-l")
    tool(
        "psql",
        copy.url,
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        "\n".join(
            re.findall(r"^(?:CREATE|ALTER) ROLE howdah_(?:owner|producer|worker|reader|admin)\b.*", roles, re.MULTILINE)
        ),
    )
    tool("pg_restore", copy.url, "--exit-on-error", str(dump))
    await connection.execute("select howdah.resume('mail')")

    assert (await cli("migrate", url=copy)).out == "up to date\n"
    restored = await connect_to(copy)
    assert await wrong_rights(restored) == []
    said = await cli("pause", "--all", "--by", "restore", url=copy)
    assert said.out == "paused: default, mail\n"
    second = Daemon(
        tmp_path / "second",
        url=copy.url,
        handlers=HANDLERS,
        environment={"HOWDAH_QUEUES": "default:5,mail:5", "HOWDAH_LEASE_TTL": "2"},
    )
    try:
        await second.ready()
        # The dead worker's jobs are taken back, and wait like all others.
        await aeventually(
            lambda: restored.fetchval("select count(*) = 4 from howdah.jobs where due_at is null and lease is null"),
            timeout=30,
        )
        assert await restored.fetchval("select count(*) from howdah.workers") == 1
        assert not list(second.folder.glob("sent-*")) + list(second.folder.glob("began-*"))
        assert await outcomes(restored) == {"completed": len(done)}
        # What must not happen twice is taken out, then the rest may go.
        assert (await cli("cancel", str(ready), url=copy)).code == 0
        assert (await cli("resume", "--all", url=copy)).out == "resumed: default, mail\n"
        (second.folder / "enough").touch()
        await aeventually(
            lambda: restored.fetchval("select array_agg(id) = array[$1::bigint] from howdah.jobs", later), timeout=30
        )
        assert await outcomes(restored) == {"completed": len(done) + len(held), "cancelled": 1}
        assert not list(second.folder.glob("sent-*"))
        assert await second.stop() == 0
    finally:
        second.reap()
        restored.terminate()
    # The one that was copied has seen nothing of it.
    (worker.folder / "enough").touch()
    await aeventually(lambda: (worker.folder / f"sent-{ready}").exists())
    assert await worker.stop() == 0


def tool(name: str, url: str, *arguments: str, place: str = "-d") -> str:
    """Run one of PostgreSQL's own tools on a database, and give what it says."""
    parts = urlsplit(url)
    done = subprocess.run(
        [find_binaries() / name, "-h", str(parts.hostname), "-p", str(parts.port), "-U", str(parts.username), place, parts.path[1:], *arguments],
        env={**os.environ, "PGPASSWORD": str(parts.password)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
