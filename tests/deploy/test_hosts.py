"""Daemons on several hosts, each with an address of its own, on one PostgreSQL; one host is cut off, and healed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.daemon import Daemon
from support.eventually import aeventually
from support.hosts import Hosts
from support.jobs import enqueue_many, status

from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg

log = logging.getLogger("tests.hosts")

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip"),
]

TTL = 3
#: A thread cannot be cancelled: it goes on on the host that was cut off, and what it says comes too late.
HANDLERS = JOURNAL + """
@handler("stubborn", runs_in="thread", timeout=120)
def stubborn(job: Job) -> str:
    time.sleep(job.payload["seconds"])
    return str(os.getpid())
"""  # fmt: skip


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts("one", "two") as hosts:
        yield hosts


@pytest.fixture
async def jobs(hosts: Hosts) -> AsyncIterator[asyncpg.Connection]:
    connection = await hosts.connect()
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    await connection.execute("select pg_reload_conf()")
    await migrate(connection)
    yield connection
    await connection.close()


@pytest.fixture
def daemons(hosts: Hosts, jobs: asyncpg.Connection, tmp_path: Path) -> Iterator[dict[str, Daemon]]:
    assert not jobs.is_closed()  # the schema is there
    started = {
        name: Daemon(
            tmp_path / name, url=hosts.url(name), handlers=HANDLERS, prefix=hosts.on(name),
            environment={"HOWDAH_LEASE_TTL": str(TTL), "HOWDAH_QUEUES": "default:6"},
        )
        for name in ("one", "two")
    }  # fmt: skip
    yield started
    for daemon in started.values():
        daemon.reap()


async def started(daemon: Daemon) -> int:
    [line] = await aeventually(lambda: daemon.log_events("started"), timeout=30)
    return int(line["worker"])


async def state_of(jobs: asyncpg.Connection, job: int, wanted: str) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        found = await status(jobs, job)
        return found if found["state"] == wanted else None

    return await aeventually(look, timeout=40)


async def test_a_host_that_is_cut_off_loses_its_jobs_to_the_other_and_its_late_word_is_refused(
    hosts: Hosts, jobs: asyncpg.Connection, daemons: dict[str, Daemon]
) -> None:
    checker = await Checker(jobs).install()
    workers = {name: await started(daemon) for name, daemon in daemons.items()}
    # More of them than one host has slots for: each has some.
    stubborn = [
        row["id"]
        for row in await enqueue_many(jobs, *({"kind": "stubborn", "payload": {"seconds": 6}} for _ in range(10)))
    ]
    mine = await aeventually(lambda: held(jobs, workers["one"]), timeout=20)
    hosts.cut("one")
    cut_at = time.monotonic()
    # Its jobs are taken back and run by the other.
    await aeventually(lambda: moved(jobs, mine, workers["two"]), timeout=TTL + 10)
    recovery = time.monotonic() - cut_at
    await enqueue_many(jobs, *({"kind": "innocent"} for _ in range(200)))
    for job in stubborn:
        ended = await state_of(jobs, job, "completed")
        if job in mine:
            assert ended["worker"] == workers["two"]
    hosts.heal("one")
    # It comes back by itself, and works.
    await aeventually(lambda: back(jobs, workers["two"]), timeout=40)
    again = await enqueue_many(jobs, *({"kind": "innocent", "payload": {"seconds": 0.05}} for _ in range(400)))
    await aeventually(lambda: nothing_left(jobs), timeout=30)
    by = await jobs.fetch(
        "select distinct leased_by from howdah.job_history where id = any ($1)", [row["id"] for row in again]
    )
    assert len(by) == 2, "the healed host does nothing"
    assert recovery < TTL + 2 + 1, f"{recovery:.1f} s"
    await checker.check()
    # Threads went on over there, and what they said came too late: it changed nothing.
    assert await jobs.fetchval("select count(*) from howdah.job_history where id = any ($1)", stubborn) == len(stubborn)
    for daemon in daemons.values():
        assert await daemon.stop() == 0
    lost = daemons["one"].log_events("lost lease")
    log.warning("cut off with %d jobs; taken over after %.1f s; %d late words refused", len(mine), recovery, len(lost))


async def held(jobs: asyncpg.Connection, worker: int) -> list[int] | None:
    rows = await jobs.fetch("select id from howdah.jobs where leased_by = $1 and started_at is not null", worker)
    return [row["id"] for row in rows] if len(rows) >= 2 else None


async def moved(jobs: asyncpg.Connection, mine: list[int], worker: int) -> bool:
    """Rescued jobs are suspects, run one at a time: one that runs elsewhere shows that all were taken back."""
    found: int = await jobs.fetchval(
        "select count(*) from howdah.jobs where id = any ($1) and leased_by = $2", mine, worker
    )
    left: int = await jobs.fetchval(
        "select count(*) from howdah.jobs where id = any ($1) and leased_by is distinct from $2 and leased_by is not null",
        mine,
        worker,
    )
    return found >= 1 and left == 0


async def back(jobs: asyncpg.Connection, other: int) -> bool:
    found: int = await jobs.fetchval(
        "select count(*) from howdah.workers where id <> $1 and beat_at > now() - interval '3 s'", other
    )
    return found >= 1


async def nothing_left(jobs: asyncpg.Connection) -> bool:
    return not await jobs.fetchval("select count(*) from howdah.jobs")
