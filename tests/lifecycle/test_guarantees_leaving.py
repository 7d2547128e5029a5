"""A worker leaves in time and in order: what runs may end, what waits goes back uncounted, and nobody can hold it up."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue, enqueue_many, live

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

log = logging.getLogger("figures")

#: Beyond the drain timeout: a cancelled handler's grace, the last acks, and the way out of a loaded machine.
GRACE = 8.0


async def test_sigterm_lets_running_jobs_end_and_gives_hundreds_in_hand_back_uncounted(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("work")
async def work(job: Job) -> None:
    if job.payload:
        await innocent(job)
"""  # fmt: skip
    worker = await daemon(handlers, queues="default:30", drain_timeout=15)
    # A kind that has shown to be short is claimed ahead, as fast as its jobs have ended of late.
    short, long = {"kind": "work"}, {"kind": "work", "payload": {"seconds": 2}}
    jobs = await enqueue_many(connection, *[short] * 6000, *[long] * 400)
    ids = [row["id"] for row in jobs[6000:]]
    await aeventually(lambda: is_running(worker, slots=30, in_hand=100))
    await aeventually(lambda: has_started(checker, ids, 30))
    worker.terminate()
    began = time.monotonic()
    assert await worker.wait(15) == 0
    assert time.monotonic() - began < 6

    started = {word.job_id for word in await checker.starts(*ids)}
    assert len(started) == 30  # nothing was started after SIGTERM
    for job in ids:
        if job in started:
            row = await checker.history_of(job)
            assert (row["state"], row["attempt"]) == ("completed", 1)
        else:
            waiting = await live(connection, job)
            assert waiting is not None
            assert (waiting["state"], waiting["attempt"], waiting["crashes"], waiting["suspect"]) == (
                "ready",
                0,
                0,
                False,
            )
    assert not await connection.fetchval("select exists (select from howdah.workers)")
    await checker.check(drained=False)


@pytest.mark.faults
@pytest.mark.fault(
    "Event loop",
    "handlers swallow their cancellation, or block the loop or a thread, in a drain",
    "the worker leaves in time; their jobs run elsewhere uncounted",
)
async def test_no_handler_can_outlive_the_hard_deadline_and_no_job_is_counted_for_it(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("swallow", queue="swallow")
async def swallow(job: Job) -> None:
    await journal(job, "start")
    while not Path("../over").exists():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@handler("block", queue="block")
async def block(job: Job) -> None:
    await journal(job, "start")
    if not Path("../over").exists():
        time.sleep(1000)

@handler("thread", queue="thread", runs_in="thread")
def thread(job: Job) -> None:
    asyncio.run(journal(job, "start"))
    if not Path("../over").exists():
        time.sleep(1000)
"""  # fmt: skip
    kinds = ("swallow", "block", "thread")
    workers = {kind: await daemon(handlers, queues=f"{kind}:1", drain_timeout=1, lease_ttl=2) for kind in kinds}
    jobs = {kind: await enqueue(connection, kind) for kind in kinds}
    await aeventually(lambda: has_started(checker, list(jobs.values()), 3))

    async def leave(worker: Daemon) -> tuple[int, float]:
        worker.terminate()
        began = time.monotonic()
        return await worker.wait(30), time.monotonic() - began

    ends = dict(zip(kinds, await asyncio.gather(*map(leave, workers.values())), strict=True))
    log.warning("exit code and seconds from SIGTERM, drain timeout 1 s: %s", ends)
    assert ends["swallow"][0] == 75
    assert ends["swallow"][1] < 1 + GRACE
    assert ends["block"][0] == 75
    assert ends["block"][1] < 1 + GRACE
    assert ends["thread"][0] in {0, 75}
    assert ends["thread"][1] < 1 + GRACE
    assert "in block" in workers["block"].output()

    # What was released or is rescued runs again elsewhere, uncounted.
    (workers["swallow"].folder.parent / "over").touch()
    await daemon(handlers, queues="swallow:1,block:1,thread:1", lease_ttl=2)
    for kind in kinds:
        row = await end_of(connection, jobs[kind], timeout=15)
        assert (row["state"], row["attempt"], row["crashes"]) == ("completed", 1, 0), kind
    figures.faults += 3
    await checker.check(figures=figures)


async def test_a_second_sigterm_or_a_sigquit_releases_what_runs_at_once(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    patient = await daemon(JOURNAL, queues="default:2", drain_timeout=60)
    jobs = [await enqueue(connection, "innocent", {"seconds": 600}) for _ in range(2)]
    await aeventually(lambda: has_started(checker, jobs, 2))
    patient.terminate()
    await aeventually(lambda: patient.log_events("draining"))
    patient.terminate()
    began = time.monotonic()
    assert await patient.wait(10) == 0
    assert time.monotonic() - began < 5
    assert await standings(connection, jobs) == [("ready", 0, 0)] * 2

    quick = await daemon(JOURNAL, queues="default:2", drain_timeout=60)
    await aeventually(lambda: has_started(checker, jobs, 4))
    quick.signal(signal.SIGQUIT)
    began = time.monotonic()
    assert await quick.wait(10) == 0
    assert time.monotonic() - began < 5
    assert await standings(connection, jobs) == [("ready", 0, 0)] * 2
    await checker.check(drained=False)


async def is_running(worker: Daemon, *, slots: int, in_hand: int) -> bool:
    metrics = await worker.metrics()
    return metrics['howdah_slots_used{queue="default"}'] == slots and metrics["howdah_jobs_in_hand"] >= in_hand


async def has_started(checker: Checker, jobs: list[int], count: int) -> bool:
    return len(await checker.starts(*jobs)) >= count


async def standings(connection: asyncpg.Connection, jobs: list[int]) -> list[tuple[str, int, int]]:
    rows = [await live(connection, job) for job in jobs]
    return [(row["state"], row["attempt"], row["crashes"]) for row in rows if row is not None]


async def test_a_job_that_may_run_at_most_once_does_not_run_again_after_a_drain_cut_it_short(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("once", max_attempts=1)
async def once(job: Job) -> None:
    await journal(job, "start")
    await asyncio.sleep(3600)
"""  # fmt: skip
    worker = await daemon(handlers, drain_timeout=0.2)
    job = await enqueue(connection, "once", max_attempts=1)
    await aeventually(lambda: has_started(checker, [job], 1))
    worker.terminate()
    assert await worker.wait(15) == 0
    row = await end_of(connection, job)
    assert row["state"] == "dead"
    assert "at most once" in row["error"]
