"""Memory runs out: in a process handler, in the worker, with an exception or by the kernel's own killer. Only the greedy pay."""

from __future__ import annotations

import os
import resource
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.cgroup import memory_limit
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 1

#: What takes memory until somebody says no. In a control group it is the kernel that does; where none can be made, it is done in its place.
HANDLERS = (
    JOURNAL
    + """
import resource

async def journal_of_process(job, event):
    # A process does not know its lease; the row does, for as long as the job runs.
    connection = await asyncpg.connect(os.environ["HOWDAH_DATABASE_URL"])
    try:
        await connection.execute(
            "insert into public.journal (job_id, lease, attempt, worker, event) select id, lease, attempt, $2, $3 from howdah.jobs where id = $1",
            job.id, str(os.getpid()), event)
    finally:
        await connection.close()

def hoard(megabytes=1):
    hoarded = []
    while True:
        hoarded.append(bytearray(megabytes << 20))

@handler("killed", runs_in="process", max_attempts=2, backoff=lambda attempt: 0.0)
def killed(job: Job) -> None:
    asyncio.run(journal_of_process(job, "start"))
    if job.payload["group"] is None:
        os.kill(os.getpid(), signal.SIGKILL)
    Path(job.payload["group"]).write_text(str(os.getpid()))
    hoard()

@handler("refused", runs_in="process", max_attempts=2, backoff=lambda attempt: 0.0)
def refused(job: Job) -> None:
    asyncio.run(journal_of_process(job, "start"))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (64 << 20), resource.RLIM_INFINITY))
    try:
        hoard()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

@handler("greedy", max_attempts=2, backoff=lambda attempt: 0.0)
async def greedy(job: Job) -> None:
    await journal(job, "start")
    if not job.payload.get("once") or not Path("../taken").exists():
        Path("../taken").touch()
        hoard(16)
    await journal(job, "end")

@handler("beside", runs_in="process")
def beside(job: Job) -> None:
    asyncio.run(journal_of_process(job, "start"))
    time.sleep(job.payload.get("seconds", 0))
    asyncio.run(journal_of_process(job, "end"))
"""
)


@pytest.mark.fault(
    "Process", "a process handler uses up its memory: the kernel kills it, or refuses more",
    "a failed attempt of that job alone; the other processes go on",
)  # fmt: skip
async def test_a_process_that_runs_out_of_memory_fails_its_own_job_alone(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(HANDLERS, lease_ttl=TTL)
    with memory_limit(96, f"howdah-test-{secrets.token_hex(4)}") as group:
        beside = await enqueue(connection, "beside", {"seconds": 1.5})
        await aeventually(lambda: checker.starts(beside), 30)
        jobs = [
            await enqueue(connection, "killed", {"group": str(group) if group else None}),
            await enqueue(connection, "refused"),
        ]
        innocent = await enqueue_many(connection, *[{"kind": "innocent"}] * 20)
        await aeventually(lambda: has_ended(connection, *jobs, *(row["id"] for row in innocent), beside), 20)
        ended = time.monotonic()
        after = await end_of(connection, await enqueue(connection, "beside"))
        figures.recovered(time.monotonic() - ended)
    figures.faults += 4

    killed, refused = [await checker.history_of(job) for job in jobs]
    assert (killed["state"], killed["attempt"], killed["crashes"]) == ("dead", 2, 0)
    assert ["died with code -9" in error["message"] for error in killed["errors"]] == [True, True]
    assert (refused["state"], refused["attempt"], refused["crashes"]) == ("dead", 2, 0)
    assert [error["type"] for error in refused["errors"]] == ["MemoryError"] * 2
    others = await connection.fetch(
        "select distinct state, attempt, crashes, leased_by from howdah.job_history where id <> all ($1)", jobs
    )
    assert [tuple(row) for row in others] == [("completed", 1, 0, worker.worker)]
    assert after["state"] == "completed"
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process",
    "a handler uses up the worker's memory (RLIMIT_AS)",
    "a failed attempt; all other jobs go on in the same worker",
)
async def test_a_memory_error_in_the_worker_is_a_failed_attempt_and_nothing_else(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(HANDLERS, lease_ttl=TTL)
    await end_of(connection, await enqueue(connection, "innocent"))
    leave_memory(worker, megabytes=256)
    greedy = [await enqueue(connection, "greedy") for _ in range(3)]
    await enqueue_many(connection, *[{"kind": kind} for kind in ("innocent", "effect") * 20])
    await aeventually(lambda: has_ended(connection, *greedy))
    ended = time.monotonic()
    await end_of(connection, await enqueue(connection, "effect"))
    figures.faults += 6
    figures.recovered(time.monotonic() - ended)

    for job in greedy:
        row = await checker.history_of(job)
        assert (row["state"], row["attempt"], [error["type"] for error in row["errors"]]) == (
            "dead",
            2,
            ["MemoryError"] * 2,
        )
    others = await connection.fetch(
        "select distinct state, attempt, crashes, leased_by from howdah.job_history where id <> all ($1)", greedy
    )
    assert [tuple(row) for row in others] == [("completed", 1, 0, worker.worker)]
    assert await worker.stop() == 0
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process",
    "a worker is killed because memory ran out",
    "its jobs run elsewhere, one after the other, no attempt counted",
)
async def test_a_worker_that_the_kernel_kills_for_its_memory_has_crashed_and_its_jobs_run_elsewhere(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    with memory_limit(64, f"howdah-test-{secrets.token_hex(4)}") as group:
        if group is None:
            pytest.skip("this machine lets nobody make a control group, so the kernel cannot be made to kill")
        victim = await daemon(HANDLERS, lease_ttl=TTL)
        group.write_text(str(victim.process.pid))
        long = await enqueue_many(
            connection, *[{"kind": kind, "payload": {"seconds": 0.3}} for kind in ("innocent", "effect")]
        )
        jobs = [row["id"] for row in long]
        await aeventually(lambda: checker.starts(*jobs))
        jobs.append(await enqueue(connection, "greedy", {"once": True}))
        assert await victim.wait() == -9
        killed = time.monotonic()
        survivor = await daemon(HANDLERS, lease_ttl=TTL)
        await aeventually(lambda: has_ended(connection, *jobs), 15)
    figures.faults += 1
    figures.recovered(time.monotonic() - killed)

    ends = await connection.fetch("select distinct state, attempt, crashes from howdah.job_history")
    assert [tuple(row) for row in ends] == [("completed", 1, 0)]
    assert (await checker.history_of(jobs[-1]))["leased_by"] == survivor.worker
    assert len(await checker.starts(jobs[-1])) == 2
    await checker.check(figures=figures)


def leave_memory(worker: Daemon, *, megabytes: int) -> None:
    """Let a running worker have so much more memory than it has now, and no more."""
    pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (limit, limit))
