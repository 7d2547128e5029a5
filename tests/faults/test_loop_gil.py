"""What a handler can do to its event loop: hold everything from within C, or drown it in tasks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
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

NOT_DROWNED = "heartbeats go on, nothing is rescued, the memory serves again"

HANDLERS = (
    JOURNAL
    + """
import ctypes

@handler("hold", max_attempts=10)
async def hold(job: Job) -> None:
    # PyDLL, unlike CDLL, keeps the GIL while it calls: no thread of this process gets on.
    await journal(job, "start")
    if not job.payload.get("once") or not Path("../held").exists():
        Path("../held").touch()
        ctypes.PyDLL(None).sleep(job.payload["seconds"])
    await journal(job, "end")

@handler("tasks")
async def tasks(job: Job) -> int:
    await journal(job, "start")
    waiting = [asyncio.create_task(asyncio.sleep(0.5)) for _ in range(job.payload["tasks"])]
    await asyncio.gather(*waiting)
    await journal(job, "end")
    return len(waiting)
"""
)


@pytest.mark.fault(
    "Event loop", "a C call holds the GIL for good", "a crash by contract: rescued, run alone, dead after three starts; others' jobs run on"
)  # fmt: skip
async def test_a_job_that_holds_the_gil_for_good_is_rescued_run_alone_and_buried(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    workers = await asyncio.gather(*(daemon(HANDLERS, lease_ttl=TTL, queues="default:5") for _ in range(4)))
    jobs = await enqueue_many(
        connection,
        {"kind": "hold", "payload": {"seconds": 3600}},
        *[{"kind": "innocent", "payload": {"seconds": 0.05}}] * 60,
    )
    began = time.monotonic()
    holder, *innocent = [row["id"] for row in jobs]
    await aeventually(lambda: has_ended(connection, holder, *innocent), 30)
    figures.recovered(time.monotonic() - began)

    buried = await checker.history_of(holder)
    starts = await checker.starts(holder)
    figures.faults += len(starts)
    assert (buried["state"], buried["crashes"], len(starts)) == ("dead", 2, 3)
    assert "it has brought down 2 workers" in buried["errors"][-1]["message"]
    ends = await connection.fetch(
        "select distinct state, attempt, crashes from howdah.job_history where id <> $1", holder
    )
    assert [tuple(row) for row in ends] == [("completed", 1, 0)]
    # The one that was left works on.
    [left] = [worker for worker in workers if str(worker.process.pid) not in {start.worker for start in starts}]
    assert (await end_of(connection, await enqueue(connection, "innocent")))["worker"] == left.worker
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Event loop", "a C call holds the GIL for longer than the ttl", "its job runs elsewhere uncounted; its late ack is refused, it enters again"
)  # fmt: skip
async def test_a_worker_that_held_the_gil_too_long_is_refused_and_enters_again(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    pair = await asyncio.gather(*(daemon(HANDLERS, lease_ttl=TTL) for _ in range(2)))
    job = await enqueue(connection, "hold", {"seconds": 3, "once": True})
    [start] = await aeventually(lambda: checker.starts(job))
    holding, other = sorted(pair, key=lambda worker: str(worker.process.pid) != start.worker)
    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"], ended["crashes"], ended["worker"]) == ("completed", 1, 0, other.worker)
    await aeventually(lambda: holding.log_events("lost lease"))
    late = time.monotonic()
    await aeventually(lambda: holding.log_events("claims again"))
    assert await other.stop() == 0
    again = await end_of(connection, await enqueue(connection, "innocent"))
    figures.faults += 1
    figures.recovered(time.monotonic() - late)
    assert again["worker"] != holding.worker
    await checker.check(figures=figures)


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param(20_000, marks=pytest.mark.fault("Event loop", "a handler makes 20,000 tasks", NOT_DROWNED)),
        pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.fault("Event loop", "a handler makes 100,000 tasks", NOT_DROWNED)]),
    ],
)  # fmt: skip
async def test_many_tasks_of_a_handler_stop_no_heartbeat_and_their_memory_comes_back(
    tasks: int, daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    started = await asyncio.gather(*(daemon(HANDLERS, lease_ttl=3) for _ in range(2)))
    workers = {worker.worker: worker for worker in started}
    most: dict[int, list[int]] = {worker: [] for worker in workers}
    for _ in range(3):
        job = await enqueue(connection, "tasks", {"tasks": tasks})
        await aeventually(lambda job=job: checker.starts(job))
        running: int = await connection.fetchval("select leased_by from howdah.jobs where id = $1", job)
        busy, sizes = workers[running], [0]
        await enqueue_many(connection, *[{"kind": "innocent"}] * 10)
        while not await has_ended(connection, job):
            assert await busy.metric("howdah_heartbeat_age_seconds") < 3
            sizes.append(resident(busy))
            await asyncio.sleep(0.1)
        most[running].append(max(sizes))
        ended = await end_of(connection, job)
        assert (ended["result"], ended["attempt"], ended["worker"]) == (tasks, 1, running)
        figures.faults += 1
    # Of three rounds one worker had two: what the first took has served the second.
    assert all(sizes[-1] < sizes[0] * 1.3 for sizes in most.values() if sizes), most
    assert not any(worker.log_events("rescued") for worker in started)
    await checker.check(figures=figures)


def resident(worker: Daemon) -> int:
    """The memory that a worker has, in bytes."""
    return int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]) * 4096
