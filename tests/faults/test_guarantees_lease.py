"""Who holds a job holds it alone: frozen workers are refused, busy ones are left in peace, hung ones leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended
from support.jobs import enqueue, live

if TYPE_CHECKING:
    import asyncpg
    from conftest import Connect, StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 1

#: What a worker does with a job depends on which of its attempts it is.
SLOW_AT_FIRST = (
    JOURNAL
    + """
@handler("work")
async def work(job: Job) -> dict[str, Any]:
    first = not Path("../seen").exists()
    Path("../seen").touch()
    await journal(job, "start")
    if first:
        # Looks at a file, and not at the clock: it must outlive the freezing.
        while not Path("../go").exists():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                return {"by": os.getpid(), "interrupted": True}
    while Path("../slow").exists():
        await asyncio.sleep(0.02)
    await journal(job, "end")
    return {"by": os.getpid()}
"""
)


@pytest.mark.fault(
    "Process", "frozen (SIGSTOP) beyond its ttl", "its late ack is refused; it enters again and works on"
)
async def test_a_frozen_worker_s_late_ack_is_refused_and_it_enters_again_and_works_on(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    frozen = await daemon(SLOW_AT_FIRST, lease_ttl=TTL)
    job = await enqueue(connection, max_attempts=2)
    await aeventually(lambda: checker.starts(job))
    frozen.freeze()
    other = await daemon(SLOW_AT_FIRST, lease_ttl=TTL)
    ended = await end_of(connection, job)
    assert ended["result"] == {"by": other.process.pid}
    assert (ended["attempt"], ended["crashes"], ended["worker"]) == (1, 0, other.worker)
    before = await checker.history_of(job)

    frozen.thaw()
    (frozen.folder.parent / "go").touch()
    await aeventually(lambda: frozen.log_events("lost lease"))
    await aeventually(lambda: frozen.log_events("taken for dead, entering again"))
    assert await frozen.metric("howdah_lost_leases_total") == 1
    assert await checker.history_of(job) == before
    await checker.check()

    # Left alone, it works on, as a new worker.
    assert await other.stop() == 0
    again = await end_of(connection, await enqueue(connection))
    assert again["result"] == {"by": frozen.process.pid}
    assert again["worker"] != frozen.worker
    assert frozen.log_events("claims again")
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process", "frozen (SIGSTOP) beyond its ttl, and back while another runs its job", "the late ack ends nothing"
)
async def test_a_late_ack_does_not_end_a_job_that_another_worker_runs_by_now(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    frozen = await daemon(SLOW_AT_FIRST, lease_ttl=TTL)
    slow = frozen.folder.parent / "slow"
    slow.touch()
    job = await enqueue(connection)
    await aeventually(lambda: checker.starts(job))
    frozen.freeze()
    other = await daemon(SLOW_AT_FIRST, lease_ttl=TTL)
    await aeventually(lambda: started(checker, job, 2))
    held = await live(connection, job)

    frozen.thaw()
    await aeventually(lambda: frozen.log_events("lost lease"))
    assert await live(connection, job) == held
    slow.unlink()
    ended = await end_of(connection, job)
    assert (ended["result"], ended["worker"]) == ({"by": other.process.pid}, other.worker)
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Event loop", "a handler blocks the loop for three ttl", "no rescue, no second run; heartbeat and port go on"
)
async def test_a_handler_that_blocks_the_loop_for_three_ttl_is_not_rescued_and_the_port_answers_meanwhile(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("work")
async def work(job: Job) -> None:
    await journal(job, "start")
    time.sleep(3 * 1.0)
    await journal(job, "end")
"""  # fmt: skip
    workers = {each.worker: each for each in [await daemon(handlers, lease_ttl=TTL) for _ in range(2)]}
    job = await enqueue(connection)
    await aeventually(lambda: checker.starts(job))
    row = await live(connection, job)
    assert row is not None
    blocked = workers[row["leased_by"]]
    answers = []
    while not await has_ended(connection, job):
        asked = time.monotonic()
        assert await blocked.metric("howdah_heartbeat_age_seconds") < TTL
        assert (await blocked.get("/healthz"))[0] == 200
        answers.append(time.monotonic() - asked)
    assert len(answers) > 3
    assert max(answers) < 1

    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"], ended["crashes"]) == ("completed", 1, 0)
    assert ended["worker"] == blocked.worker
    assert ended["duration"].total_seconds() >= 3 * TTL
    assert len(await checker.starts(job)) == 1
    assert not any(worker.log_events("rescued") for worker in workers.values())
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Event loop",
    "a handler blocks the loop for good",
    "given up with all stacks and exit 75; its job runs elsewhere uncounted",
)
async def test_a_hung_loop_is_given_up_with_every_stack_in_the_log_and_exit_75(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("work")
async def hang_for_good(job: Job) -> None:
    await journal(job, "start")
    if job.payload.get("hangs") and Path("../hung").exists() is False:
        Path("../hung").touch()
        time.sleep(1000)
    await journal(job, "end")
"""  # fmt: skip
    hung = await daemon(handlers, lease_ttl=TTL, hang_timeout=1)
    job = await enqueue(connection, payload={"hangs": True})
    await aeventually(lambda: checker.starts(job))
    assert await hung.wait(10) == 75
    [line] = hung.log_events("the main loop hangs, leaving")
    assert 1 <= line["pulse_age"] < 4
    assert "in hang_for_good" in hung.output()
    assert "most recent call first" in hung.output()

    # Somebody else has the job soon, and nothing was counted.
    await daemon(handlers, lease_ttl=TTL)
    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"], ended["crashes"]) == ("completed", 1, 0)
    figures.faults += 1
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Users", "somebody holds the row whose start must be written", "the handler is called when it is written, once"
)
async def test_a_job_whose_row_is_held_when_its_start_must_be_written_waits_and_is_then_run_once(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL + """
@handler("work", max_attempts=1)
async def work(job: Job) -> None:
    await journal(job, "start")
    while job.payload.get("waits") and not Path("go").exists():
        await asyncio.sleep(0.02)
    await journal(job, "end")
"""  # fmt: skip
    # The second slot has no place to run in while the first is busy, so its job can be held before its start.
    worker = await daemon(handlers, queues="default:2", concurrency=1, lease_ttl=TTL)
    first = await enqueue(connection, payload={"waits": True})
    await aeventually(lambda: checker.starts(first))
    job = await enqueue(connection)
    await aeventually(lambda: is_claimed(connection, job))
    holder = await connect()
    async with holder.transaction():
        await holder.execute("select from howdah.jobs where id = $1 for update", job)
        (worker.folder / "go").touch()
        await aeventually(lambda: has_ended(connection, first))
        await aeventually(lambda: slots_used(worker, 1))
        assert not await checker.starts(job)
    ended = await end_of(connection, job)
    assert ended["state"] == "completed"
    assert len(await checker.starts(job)) == 1
    figures.faults += 1
    await checker.check(figures=figures)


async def started(checker: Checker, job: int, times: int) -> bool:
    return len(await checker.starts(job)) >= times


async def is_claimed(connection: asyncpg.Connection, job: int) -> bool:
    row = await live(connection, job)
    return row is not None and row["lease"] is not None


async def slots_used(worker: Daemon, count: int) -> bool:
    return await worker.metric('howdah_slots_used{queue="default"}') == count
