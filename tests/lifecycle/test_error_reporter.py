"""Failed attempts are told to the application's own reporters, which can neither hurt a job nor slow the loop."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from support.eventually import aeventually
from support.facts import end_of, is_empty, outcomes, state_of
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon

NOTE = """
def note(reporter, job, error):
    line = {"reporter": reporter, "job": job.id, "kind": job.kind, "attempt": job.attempt, "payload": str(job.payload),
            "error": type(error).__name__, "main": threading.current_thread() is threading.main_thread(),
            "traced": error.__traceback__ is not None}
    logging.getLogger("note").warning("reported")
    with open("reports", "a") as file:
        print(json.dumps(line), file=file, flush=True)
"""

HANDLERS = "import json\n" + NOTE + """
@on_error
def plain(job, error):
    note("plain", job, error)

@on_error
async def in_loop(job, error):
    await asyncio.sleep(0)
    note("async", job, error)

class Payload(BaseModel):
    n: int = 0
    then: str = ""

@handler("work", max_attempts=2, backoff=lambda attempt: 0, timeout=0.3)
async def work(job: Job[Payload]) -> Any:
    match job.payload.then:
        case "raise": raise ValueError("broken")
        case "hang": await asyncio.sleep(60)
        case "snooze": return Snooze(3600)
        case "discard": return Discard("no")
        case "cancel": return Cancel("no")

@handler("thread", max_attempts=1)
def in_thread(job: Job): raise KeyError("thread")

@handler("process", max_attempts=1, runs_in="process")
def in_process(job: Job): raise KeyError("process")

@handler("transaction", max_attempts=1, transaction=True)
async def transaction(job: Job, connection): await connection.execute("select 1/0")

@handler("long")
async def long(job: Job):
    Path("begun").touch()
    await asyncio.sleep(600)
"""  # fmt: skip


def reports(folder: Path) -> list[dict[str, Any]]:
    file = folder / "reports"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_every_failed_attempt_is_reported_and_nothing_else(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS, drain_timeout=0.1)
    quiet = [await enqueue(connection, "work", {"then": then}) for then in ("", "discard", "cancel", "snooze")]
    expected = {}
    for kind, payload, attempts, error in (
        ("work", {"then": "raise"}, 2, "ValueError"),
        ("work", {"then": "hang"}, 2, "HandlerTimeoutError"),
        ("work", {"n": "many"}, 1, "PayloadError"),
        ("thread", {}, 1, "KeyError"),
        ("process", {}, 1, "KeyError"),
        ("transaction", {}, 1, "DivisionByZeroError"),
    ):
        job = await forced(connection, kind, payload)
        expected[job] = [(attempt, error) for attempt in range(1, attempts + 1)]
    for job in expected:
        assert (await end_of(connection, job))["state"] == "dead"
    for job in quiet[:3]:
        await end_of(connection, job)
    # Released, not failed.
    released = await enqueue(connection, "long")
    await aeventually(lambda: (worker.folder / "begun").exists())
    assert await worker.stop() == 0
    assert await state_of(connection, released) == "ready"

    for reporter, main in (("plain", False), ("async", True)):
        told = [report for report in reports(worker.folder) if report["reporter"] == reporter]
        found: dict[int, list[tuple[int, str]]] = {}
        for report in told:
            found.setdefault(report["job"], []).append((report["attempt"], report["error"]))
        assert {job: sorted(attempts) for job, attempts in found.items()} == expected
        assert {report["main"] for report in told} == {main}
        assert all(report["traced"] for report in told if report["error"] in {"ValueError", "KeyError"})
        assert "{'n': 'many'}" in {report["payload"] for report in told}
    assert {line["job"] for line in worker.log_events("reported")} == set(expected)


async def test_a_reporter_that_fails_or_hangs_hurts_no_job_and_is_logged_once(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @on_error
        async def in_loop(job, error): raise OSError("nobody listens")

        @on_error
        def plain(job, error): sys.exit(3)

        @on_error
        def hangs(job, error): time.sleep(3600)

        @handler("work", max_attempts=1)
        async def work(job: Job): raise ValueError("broken")

        @handler("well")
        async def well(job: Job): pass
        """
    )
    await enqueue_many(connection, *[{"kind": "work"}] * 50)
    await aeventually(lambda: is_empty(connection))
    await end_of(connection, await enqueue(connection, "well"))
    assert await outcomes(connection) == {"dead": 50, "completed": 1}
    assert await connection.fetch("select distinct error from howdah.job_status where state = 'dead'") == [("broken",)]
    for name in ("in_loop", "plain"):
        assert len(worker.log_events(f"the error reporter handlers.{name} fails")) == 1
    worker.terminate()
    began = time.monotonic()
    assert await worker.wait() == 0
    assert time.monotonic() - began < 8


async def test_a_slow_plain_reporter_does_not_slow_the_loop_and_too_many_reports_are_dropped(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @on_error
        def slow(job, error): time.sleep(0.05)

        @handler("work", max_attempts=1)
        async def work(job: Job): raise ValueError("broken")
        """
    )
    began = time.monotonic()
    await enqueue_many(connection, *[{"kind": "work"}] * 1200)
    await aeventually(lambda: is_empty(connection), 30)
    assert time.monotonic() - began < 1200 * 0.05 / 3
    assert len(worker.log_events("errors are not reported: 1000 reports wait already")) == 1
    worker.kill()


async def forced(connection: asyncpg.Connection, kind: str, payload: dict[str, Any]) -> int:
    """Enqueue also what enqueue would refuse, as before its kind's fields were known."""
    async with connection.transaction():
        await connection.execute("update howdah.kinds set fields = '{}' where name = $1", kind)
        return await enqueue(connection, kind, payload)
