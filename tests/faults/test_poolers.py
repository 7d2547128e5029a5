"""A real PgBouncer between the worker and the database, giving each transaction another server connection."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="pgbouncer is not installed: ./dev faults installs it"
)

HANDLERS = """
@handler("work")
async def work(job: Job) -> Any:
    return job.payload

@handler("effect", transaction=True)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into public.effects (job) values ($1)", job.id)
    await job.enqueue("work")

@handler("steps")
async def steps(job: Job) -> Any:
    async def once() -> int: return 41
    return await job.step("one", once)
"""


@asynccontextmanager
async def pgbouncer(database: Database, folder: Path) -> AsyncIterator[str]:
    """Run PgBouncer in transaction mode before a database, with fewer server connections than the worker has lines; give its address."""
    parts = urlsplit(database.url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    (folder / "ini").write_text(
        f"""[databases]
{database.name} = host=127.0.0.1 port={parts.port} dbname={database.name} user={parts.username} password={parts.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = trust
auth_file = {folder}/users
unix_socket_dir =
pool_mode = transaction
max_client_conn = 200
default_pool_size = 3
"""
    )
    # It refuses to run as root.
    other = pwd.getpwnam("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
    with (folder / "pgbouncer.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "pgbouncer", str(folder / "ini"), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            **({"user": other.pw_uid, "group": other.pw_gid} if other else {}),
        )  # fmt: skip
    address = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()

    async def answers() -> bool:
        connection = await asyncpg.connect(address, statement_cache_size=0, timeout=2)
        await connection.close()
        return True

    try:
        await aeventually(answers)
        yield address
    finally:
        process.kill()
        await process.wait()


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture
async def pooler(database: Database, connection: asyncpg.Connection) -> AsyncIterator[str]:
    await connection.execute("create table public.effects (job bigint)")
    # Not below pytest's own folder, which PgBouncer's user may not walk through.
    with tempfile.TemporaryDirectory(prefix="howdah-pgbouncer-") as folder:
        Path(folder).chmod(0o711)  # noqa: ASYNC240
        async with pgbouncer(database, Path(folder)) as address:
            yield address


async def work_through(connection: asyncpg.Connection, figures: Figures) -> None:
    """Everything that a worker does to the database, side by side, so that server connections change hands all the time."""
    await enqueue_many(connection, *({"kind": "work", "payload": {"n": n}} for n in range(1000)))
    effects = [await enqueue(connection, "effect") for _ in range(20)]
    steps = [await enqueue(connection, "steps") for _ in range(20)]
    await aeventually(lambda: is_empty(connection), timeout=30)
    for job in (*effects, *steps):
        assert (await end_of(connection, job))["state"] == "completed"
    assert await connection.fetchval("select array_agg(job order by job) from public.effects") == effects
    assert await connection.fetchval("select count(*) from howdah.job_history where state <> 'completed'") == 0
    figures.jobs = await connection.fetchval("select count(*) from howdah.job_history")
    figures.faults = 1


@pytest.mark.fault(
    "Poolers", "PgBouncer in transaction mode, a direct address for LISTEN", "everything works; wakes are heard"
)
async def test_with_the_direct_address_for_listen_everything_works_and_jobs_are_heard_of(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, pooler: str, figures: Figures
) -> None:
    worker = await daemon(HANDLERS, url=pooler, listen_database_url=database.url, poll_interval=60)
    await work_through(connection, figures)
    assert await worker.metric("howdah_listener_up") == 1
    # No poll for a minute: only a wake can have brought this one so soon.
    await end_of(connection, await enqueue(connection))
    assert worker.output().count("a pooler stands before the database") == 1


@pytest.mark.fault(
    "Poolers",
    "PgBouncer in transaction mode, nothing else",
    "everything works; jobs are found by polling, which is said once",
)
async def test_without_it_jobs_are_found_by_polling_which_is_said_once_and_shown_by_a_metric(
    daemon: StartDaemon, connection: asyncpg.Connection, pooler: str, figures: Figures
) -> None:
    worker = await daemon(HANDLERS, url=pooler)
    await work_through(connection, figures)
    await end_of(connection, await enqueue(connection))
    assert await worker.metric("howdah_listener_up") == 0
    await aeventually(lambda: worker.output().count("jobs are found by polling") == 1)
    assert await worker.metric("howdah_listener_up") == 0
