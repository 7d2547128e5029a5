"""What people say to a worker while it works: cancel, pause, signals; and what it says to systemd."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.daemon import Daemon
from support.eventually import aeventually
from support.facts import end_of, is_empty, state_of
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

log = logging.getLogger("figures")

#: Told at once by NOTIFY; a second is what is promised.
TOLD = 1.0

HANDLERS = (
    JOURNAL
    + """
@handler("thread", runs_in="thread")
def thread(job: Job) -> dict[str, Any]:
    asyncio.run(journal(job, "start"))
    for _ in range(1000):
        if job.cancelled:
            return {"saw": "cancelled"}
        time.sleep(0.02)

@handler("process", runs_in="process")
def process(job: Job) -> None:
    Path(job.payload["pid"]).write_text(str(os.getpid()))
    time.sleep(600)

@handler("stubborn", max_attempts=5)
async def stubborn(job: Job) -> str:
    # Asked to stop, it fails in its own way, and would be tried again.
    await journal(job, "start")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        raise ValueError("not like this") from None

@handler("finishes")
async def finishes(job: Job) -> str:
    try:
        # Inside: the word is in the journal before this call returns, and the cancellation may come between.
        await journal(job, "start")
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        return "done all the same"

@handler("group")
async def group(job: Job) -> str:
    # Whether a task is being cancelled is what a task group goes by.
    async def fail():
        raise ValueError("a child's")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await asyncio.sleep(5)
    except ExceptionGroup:
        return "a child failed"
"""
)


async def test_a_job_may_be_cancelled_in_every_state_and_an_ended_one_keeps_its_outcome(
    daemon: StartDaemon, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    checker = await Checker(connection).install()
    await daemon(HANDLERS, lease_ttl=3)
    ended = await enqueue(connection, "innocent")
    assert (await end_of(connection, ended))["state"] == "completed"
    scheduled = await enqueue(connection, "innocent", run_at=await connection.fetchval("select now() + interval '1 h'"))
    pid = tmp_path / "pid"
    running = {
        "innocent": await enqueue(connection, "innocent", {"seconds": 600}),
        "thread": await enqueue(connection, "thread"),
        "process": await enqueue(connection, "process", {"pid": str(pid)}),
        "stubborn": await enqueue(connection, "stubborn"),
        "finishes": await enqueue(connection, "finishes"),
    }
    await aeventually(lambda: pid.exists() and pid.read_text(), timeout=20)
    for kind in set(running) - {"process"}:
        await aeventually(lambda kind=kind: checker.starts(running[kind]))

    assert await cancel(connection, ended) == "completed"
    assert await cancel(connection, scheduled) == "cancelled"
    assert await state_of(connection, scheduled) == "cancelled"
    for job in running.values():
        assert await cancel(connection, job) == "running"
    began = time.monotonic()
    ends = {kind: await end_of(connection, job) for kind, job in running.items()}
    took = time.monotonic() - began
    log.warning("cancelled in %.2f s", took)
    assert took < TOLD + 0.5

    for kind in ("innocent", "process", "stubborn"):
        row = ends[kind]
        assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == ("cancelled", "anna", "enough"), kind
    await aeventually(lambda: not is_alive(int(pid.read_text())), timeout=TOLD)
    assert (ends["thread"]["state"], ends["thread"]["result"]) == ("completed", {"saw": "cancelled"})
    assert (ends["finishes"]["state"], ends["finishes"]["result"]) == ("completed", "done all the same")
    assert await state_of(connection, ended) == "completed"
    await aeventually(lambda: is_true(connection, "select not exists (select from howdah.signals)"))
    await checker.check()


async def test_a_job_in_hand_is_cancelled_without_being_started(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("work")
async def work(job: Job) -> None:
    if job.payload:
        await journal(job, "start")
        while not Path("go").exists():
            await asyncio.sleep(0.02)
        await journal(job, "end")
"""  # fmt: skip
    worker = await daemon(handlers, queues="default:2")
    await enqueue_many(connection, *[{"kind": "work"}] * 100)
    await aeventually(lambda: is_empty(connection))
    jobs = [row["id"] for row in await enqueue_many(connection, *[{"kind": "work", "payload": {"long": True}}] * 8)]
    await aeventually(lambda: in_hand(worker, 6))
    assert await cancel(connection, jobs[-1]) == "running"  # claimed: only its worker may touch it
    row = await end_of(connection, jobs[-1], timeout=TOLD + 0.5)
    assert (row["state"], row["cancelled_by"], row["started_at"], row["crashes"]) == ("cancelled", "anna", None, 0)
    (worker.folder / "go").touch()
    await aeventually(lambda: is_empty(connection))
    assert not await checker.starts(jobs[-1])
    assert await connection.fetchval("select count(*) from howdah.job_history where state = 'completed'") == 107
    await checker.check()


async def test_a_handler_that_ignores_its_cancellation_leaves_nothing_of_it_to_the_next_job_in_its_slot(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    await daemon(HANDLERS, queues="default:1")
    first = await enqueue(connection, "finishes")
    await aeventually(lambda: checker.starts(first))
    await cancel(connection, first)
    assert (await end_of(connection, first))["result"] == "done all the same"
    row = await end_of(connection, await enqueue(connection, "group"))
    assert (row["state"], row["result"]) == ("completed", "a child failed")


async def test_a_paused_queue_is_left_alone_and_a_resumed_one_is_served_at_once(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(queues="default:5,other:5", poll_interval=60)
    await connection.execute("select howdah.pause('default', 'anna')")
    paused = await enqueue(connection)
    served = await enqueue(connection, queue="other")
    # The other queue's jobs come and go, and this one stays.
    for _ in range(3):
        await end_of(connection, served)
        served = await enqueue(connection, queue="other")
    assert await state_of(connection, paused) == "ready"
    await connection.execute("select howdah.resume('default')")
    assert (await end_of(connection, paused, timeout=2))["state"] == "completed"


async def test_tstp_stops_claiming_cont_goes_on_ttin_tells_of_everything_and_hup_reads_the_file_again(
    daemon: StartDaemon, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    checker = await Checker(connection).install()
    file = tmp_path / "howdah.toml"
    file.write_text('queues = "default:2"\ndrain_timeout = 20\n')
    worker = await daemon(JOURNAL, config=file, poll_interval=0.05)
    jobs = [row["id"] for row in await enqueue_many(connection, *[LONG] * 6)]
    await aeventually(lambda: starts_of(checker, jobs, 2))

    worker.signal(signal.SIGTTIN)
    await aeventually(lambda: worker.log_events("tasks"))
    [told] = worker.log_events("tasks")
    assert told["running"] == [word.job_id for word in await checker.starts(*jobs)]
    assert 'await asyncio.sleep(job.payload.get("seconds", 0))' in told["stacks"]
    assert "thread lifeline" in told["stacks"]

    file.write_text('queues = "default:4"\nlog_level = "debug"\n')
    worker.signal(signal.SIGHUP)
    await aeventually(lambda: starts_of(checker, jobs, 4))
    assert await worker.metric('howdah_slots{queue="default"}') == 4

    # A file that is wrong changes nothing, and says what is wrong.
    file.write_text('queues = "default:none"\n')
    worker.signal(signal.SIGHUP)
    await aeventually(lambda: any("HOWDAH_QUEUES" in line["event"] for line in worker.logs()))
    assert await worker.metric('howdah_slots{queue="default"}') == 4

    worker.signal(signal.SIGTSTP)
    await aeventually(lambda: worker.log_events("claims no more"))
    for job in [word.job_id for word in await checker.starts(*jobs)]:
        await cancel(connection, job)
    await aeventually(lambda: slots_used(worker, 0))
    quiet = await enqueue(connection, "innocent")
    polls = await worker.metric("howdah_claim_seconds_count")
    beat = await connection.fetchval("select beat_at from howdah.workers")
    await connection.execute("notify howdah, 'default'")
    assert [await state_of(connection, job) for job in (*jobs[4:], quiet)] == ["ready"] * 3
    worker.signal(signal.SIGCONT)
    await aeventually(lambda: starts_of(checker, [*jobs, quiet], 7))
    assert await worker.metric("howdah_claim_seconds_count") > polls
    assert beat <= await connection.fetchval("select beat_at from howdah.workers")


#: Longer than any test.
LONG = {"kind": "innocent", "payload": {"seconds": 600}}


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


async def test_systemd_is_told_of_readiness_reloads_the_watchdog_and_the_way_out(
    database: Database, connection: asyncpg.Connection, systemd: socket.socket, tmp_path: Path
) -> None:
    checker = await Checker(connection).install()
    worker = Daemon(
        tmp_path / "daemon",
        url=database.url,
        handlers=JOURNAL,
        environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000", "HOWDAH_DRAIN_TIMEOUT": "7"},
    )
    words: list[str] = []

    def heard(word: str) -> bool:
        while True:
            try:
                words.extend(systemd.recv(4096).decode().splitlines())
            except BlockingIOError:
                return any(said.startswith(word) for said in words)

    try:
        await worker.ready()
        await aeventually(lambda: heard("READY=1"))
        await aeventually(lambda: heard("WATCHDOG=1"))
        assert "STATUS=working" in words
        assert not heard("STOPPING=1")

        # Fed at half of its patience, again and again.
        words.clear()
        began = time.monotonic()
        await aeventually(lambda: heard("WATCHDOG=1") and words.count("WATCHDOG=1") >= 5)
        assert time.monotonic() - began < 5 * 0.4

        words.clear()
        worker.signal(signal.SIGHUP)
        await aeventually(lambda: heard("RELOADING=1"))
        await aeventually(lambda: heard("READY=1"))

        words.clear()
        job = await enqueue(connection, "innocent", {"seconds": 1.5})
        await aeventually(lambda: checker.starts(job))
        worker.terminate()
        await aeventually(lambda: heard("STOPPING=1"))
        await aeventually(lambda: heard("STATUS=draining 1 job"))
        [extended] = [word for word in words if word.startswith("EXTEND_TIMEOUT_USEC=")]
        assert int(extended.partition("=")[2]) >= 7_000_000
        words.clear()
        await aeventually(lambda: heard("WATCHDOG=1"))  # fed to the end
        assert await worker.wait() == 0
        assert (await checker.history_of(job))["state"] == "completed"
    finally:
        worker.reap()


async def cancel(connection: asyncpg.Connection, job: int) -> str:
    state: str = await connection.fetchval("select howdah.cancel($1, 'anna', 'enough')", job)
    return state


async def starts_of(checker: Checker, jobs: list[int], count: int) -> bool:
    return len(await checker.starts(*jobs)) >= count


async def in_hand(worker: Daemon, count: int) -> bool:
    return await worker.metric("howdah_jobs_in_hand") == count


async def slots_used(worker: Daemon, count: int) -> bool:
    return await worker.metric('howdah_slots_used{queue="default"}') == count


async def is_true(connection: asyncpg.Connection, question: str) -> bool:
    return bool(await connection.fetchval(question))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
