"""What handlers share is there before the first claim, gone after the last handler, and its failure is the worker's."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from support.daemon import howdah
from support.daemon import write_handlers as write
from support.eventually import aeventually
from support.facts import end_of, state_of
from support.jobs import enqueue

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

TRACE = """
def trace(word):
    with open("trace", "a") as file:
        print(word, file=file, flush=True)
"""

SHARED = TRACE + """
@lifespan
async def session():
    trace("enter session")
    yield {"greeting": "hello", "loop": asyncio.get_running_loop()}
    trace("leave session")

@lifespan
async def counter():
    trace("enter counter")
    try:
        yield [0]
    finally:
        await asyncio.sleep(0)
        trace("leave counter")

@lifespan
async def nothing():
    yield

@handler("async")
async def in_loop(job: Job) -> Any:
    trace("handle")
    job.resources["counter"][0] += 1
    return {"greeting": job.resources["greeting"], "count": job.resources["counter"][0], "names": list(job.resources),
            "same loop": job.resources["loop"] is asyncio.get_running_loop()}

@handler("thread")
def in_thread(job: Job) -> Any:
    job.resources["counter"][0] += 1
    return {"greeting": job.resources["greeting"], "count": job.resources["counter"][0]}

@handler("process", runs_in="process", max_attempts=1)
def in_process(job: Job) -> Any:
    return job.resources["greeting"]

@handler("missing", max_attempts=1)
async def missing(job: Job) -> Any:
    return job.resources["gretting"]

@handler("long")
async def long(job: Job) -> None:
    trace("begin")
    try:
        await asyncio.sleep(job.payload["seconds"])
    finally:
        trace("end")
"""  # fmt: skip


def traced(folder: Path) -> list[str]:
    file = folder / "trace"
    return file.read_text().splitlines() if file.exists() else []


async def test_handlers_of_a_worker_share_what_its_lifespans_give(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(SHARED)
    first = await end_of(connection, await enqueue(connection, "async"))
    assert first["result"] == {
        "greeting": "hello",
        "count": 1,
        "names": ["greeting", "loop", "counter"],
        "same loop": True,
    }
    second = await end_of(connection, await enqueue(connection, "thread"))
    assert second["result"] == {"greeting": "hello", "count": 2}
    refused = await end_of(connection, await enqueue(connection, "process"))
    assert "job.resources is not there in a process handler" in refused["error"]
    unknown = await end_of(connection, await enqueue(connection, "missing"))
    assert "no lifespan gives 'gretting'; resources: greeting, loop, counter" in unknown["error"]
    assert await worker.stop() == 0
    assert traced(worker.folder) == ["enter session", "enter counter", "handle", "leave counter", "leave session"]


async def test_lifespans_are_left_after_the_last_handler_in_a_drain_and_in_a_forced_one(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    for seconds, hurry in ((0.3, False), (600, True)):
        worker = await daemon(SHARED, drain_timeout=60)
        await enqueue(connection, "long", {"seconds": seconds})
        await aeventually(lambda worker=worker: "begin" in traced(worker.folder))
        worker.terminate()
        if hurry:
            await aeventually(lambda worker=worker: worker.log_events("draining"))
            worker.signal(signal.SIGQUIT)
        assert await worker.wait() == 0
        expected = ["enter session", "enter counter", "begin", "end", "leave counter", "leave session"]
        assert traced(worker.folder) == expected


async def test_a_lifespan_that_fails_at_start_ends_the_worker_in_one_line_with_nothing_claimed(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    job = await enqueue(connection, "work")
    handlers = TRACE + """
@lifespan
async def first():
    yield
    trace("leave first")

@lifespan
async def smtp():
    {}
    yield

@handler("work")
async def work(job: Job) -> None:
    trace("work")
"""  # fmt: skip
    cases = {
        'raise ConnectionRefusedError("no\\n such host")': (1, "lifespan smtp failed at start: ConnectionRefusedError"),
        "sys.exit(0)": (1, "lifespan smtp failed at start: SystemExit: 0"),
        'from howdah.errors import ConfigError; raise ConfigError("SMTP_URL", "is not set")': (78, "SMTP_URL: is not"),
    }
    for body, (code, message) in cases.items():
        (tmp_path / "trace").unlink(missing_ok=True)
        write(tmp_path, handlers.replace("{}", body))
        done = howdah("run", folder=tmp_path, HOWDAH_DATABASE_URL=database.url, HOWDAH_LOG_LEVEL="warning")
        assert done.returncode == code, done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith("howdah: " + message)
        assert traced(tmp_path) == ["leave first"]
    assert await state_of(connection, job) == "ready"
    assert not await connection.fetchval("select exists (select from howdah.workers)")


async def test_a_declaration_that_cannot_work_is_a_configuration_error(database: Database, tmp_path: Path) -> None:
    cases = {
        "@lifespan\ndef plain(): yield": "must be an async function with one yield",
        "@lifespan\nasync def asks(config): yield": "must not ask for arguments",
        "@lifespan\nasync def one(): yield {'a': 1}\n@lifespan\nasync def a(): yield 2": "gives 'a', which another lifespan",
    }
    for text, problem in cases.items():
        write(tmp_path, text + '\n@handler("work")\nasync def work(job: Job): pass\n')
        done = howdah("run", folder=tmp_path, HOWDAH_DATABASE_URL=database.url, HOWDAH_LOG_LEVEL="warning")
        assert done.returncode == 78, done.stderr
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1


async def test_a_lifespan_that_fails_while_leaving_is_logged_the_others_are_left_and_the_exit_code_says_so(
    daemon: StartDaemon,
) -> None:
    worker = await daemon(
        TRACE
        + """
@lifespan
async def outer():
    yield
    trace("leave outer")

@lifespan
async def inner():
    yield
    raise OSError("half way")

@handler("work")
async def work(job: Job) -> None: pass
"""
    )
    assert await worker.stop() == 1
    [line] = [line for line in worker.logs() if "lifespan failed at its end" in line["event"]]
    assert (line["level"], line["lifespan"]) == ("error", "inner")
    assert "half way" in line["event"]
    assert traced(worker.folder) == ["leave outer"]


async def test_a_lifespan_that_does_not_end_holds_up_nobody_for_long(daemon: StartDaemon) -> None:
    worker = await daemon(
        TRACE
        + """
@lifespan
async def outer():
    yield
    trace("leave outer")

@lifespan
async def inner():
    yield
    await asyncio.sleep(3600)

@handler("work")
async def work(job: Job) -> None: pass
"""
    )
    worker.terminate()
    began = time.monotonic()
    assert await worker.wait() == 1
    assert time.monotonic() - began < 9
    assert [line for line in worker.logs() if "lifespan does not end" in line["event"]]
    assert traced(worker.folder) == ["leave outer"]


async def test_a_lifespan_that_breaks_while_the_worker_works_stops_it_with_its_reason(daemon: StartDaemon) -> None:
    worker = await daemon(
        TRACE
        + """
async def breaks():
    while not Path("enough").exists(): await asyncio.sleep(0.01)
    raise OSError("the line is cut")

@lifespan
async def group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(breaks())
        yield

@handler("work")
async def work(job: Job) -> None: pass
"""
    )
    (worker.folder / "enough").touch()
    assert await worker.wait() == 1
    assert "the line is cut" in worker.output()
    assert worker.log_events("stopping: lifespan group ended out of turn")


async def test_a_worker_that_is_told_to_stop_while_a_lifespan_is_entered_leaves_at_once(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    job = await enqueue(connection, "work")
    worker = await daemon(
        TRACE
        + """
@lifespan
async def slow():
    trace("enter")
    try:
        await asyncio.sleep(3600)
        yield
    finally:
        trace("leave")

@handler("work")
async def work(job: Job) -> None: pass
""",
        ready=False,
    )
    await aeventually(lambda: traced(worker.folder) == ["enter"])
    worker.terminate()
    assert await worker.wait() == 0
    assert traced(worker.folder) == ["enter", "leave"]
    assert await state_of(connection, job) == "ready"
