"""What the log says of a job: everything at debug, nothing at info, and always whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon

HANDLERS = """
@handler("async")
async def in_loop(job: Job) -> None:
    logging.getLogger("app").warning("plain in the loop")
    job.log.warning("by the job", extra={"size": 3})

@handler("thread")
def in_thread(job: Job) -> None:
    logging.getLogger("app").warning("plain in a thread")

@handler("process", runs_in="process")
def in_process(job: Job) -> None:
    logging.getLogger("app").warning("plain in a process")

@handler("fails", max_attempts=2, backoff=lambda attempt: 0)
async def fails(job: Job) -> None:
    raise ValueError("no")

@handler("blocks")
async def blocks(job: Job) -> None:
    time.sleep(1.2)
"""


async def test_every_line_within_a_handler_says_whose_it_is(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS)
    jobs = {kind: await enqueue(connection, kind, subject="course:42") for kind in ("async", "thread", "process")}
    for job in jobs.values():
        await end_of(connection, job, timeout=20)
    for kind, event in (
        ("async", "plain in the loop"),
        ("async", "by the job"),
        ("thread", "plain in a thread"),
        ("process", "plain in a process"),
    ):
        [line] = worker.log_events(event)
        said = {name: line[name] for name in ("job", "kind", "queue", "attempt", "subject", "worker")}
        assert said == {
            "job": jobs[kind], "kind": kind, "queue": "default", "attempt": 1, "subject": "course:42", "worker": worker.worker,
        }, event  # fmt: skip
    # At info the life of a job is not the log's.
    assert [line for line in worker.logs() if line["event"] in {"job started", "job ended"}] == []


async def test_at_debug_the_life_of_a_job_is_told_with_its_outcome_and_duration(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS, log_level="debug")
    job = await enqueue(connection, "fails")
    await end_of(connection, job)
    await aeventually(lambda: len(worker.log_events("job ended")) == 2)
    starts, ends = worker.log_events("job started"), worker.log_events("job ended")
    assert [(line["job"], line["attempt"]) for line in starts] == [(job, 1), (job, 2)]
    assert [(line["attempt"], line["outcome"], line["error"]) for line in ends] == [
        (1, "retried", "ValueError"),
        (2, "dead", "ValueError"),
    ]
    assert all(0 <= line["seconds"] < 5 and line["level"] == "debug" for line in ends)


async def test_who_holds_up_the_main_loop_is_counted_and_named(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS)
    assert await worker.metric('howdah_loop_blocked_seconds_total{kind="blocks"}') == 0
    job = await enqueue(connection, "blocks")
    await end_of(connection, job)
    assert 1.2 <= await worker.metric('howdah_loop_blocked_seconds_total{kind="blocks"}') < 10
    await aeventually(lambda: lag_is_seen(worker))
    [line] = worker.log_events("a handler held up the main loop")
    assert (line["level"], line["job"], line["kind"], line["seconds"] >= 1.2) == ("warning", job, "blocks", True)


async def lag_is_seen(worker: Daemon) -> bool:
    lag: float = await worker.metric("howdah_loop_lag_seconds")
    return lag > 0.5
