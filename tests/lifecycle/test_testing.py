"""The test kit: a database a test, a worker in the test's process, one attempt, and failures that say what is there instead."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg  # noqa: TC002  # handlers' annotations are read at run time
import pytest
from pydantic import BaseModel
from support.eventually import eventually

from howdah import Cancel, Discard, Job, Snooze, handler
from howdah.errors import HandlersError, HandlerTimeoutError, HowdahError
from howdah.registry import registry
from howdah.testing import assert_enqueued, assert_not_enqueued, run_job, run_until_empty, sync
from howdah.testing.databases import url_of

if TYPE_CHECKING:
    from conftest import Connect
    from support.cluster import Database

DOCS = Path(__file__).parents[2] / "docs/testing.md"
GIVEN = UUID("0b2e0000-0000-4000-8000-000000000000")


class Order(BaseModel):
    number: int


@handler("kit.order", queue="orders", max_attempts=2)
async def order(job: Job[Order]) -> Any:
    """Do what the number says."""
    seen_signals.append({number: signal.getsignal(number) for number in SIGNALS})
    job.log.info("order taken", extra={"number": job.payload.number})
    await job.report({"percent": 50})
    await job.report({"percent": 100})
    match job.payload.number:
        case 1:
            return Snooze(3600) if job.attempt < 2 and not await asyncio.sleep(0) and first_time(job.id) else "snoozed"
        case 2:
            return Discard("hopeless")
        case 3:
            return Cancel("not wanted")
        case 4:
            raise ValueError("nothing in stock")
        case 5:
            await asyncio.sleep(60)
    return {
        "number": job.payload.number,
        "resources": dict(job.resources),
        "headers": dict(job.headers),
        "loop": id(asyncio.get_running_loop()),
    }


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
seen_signals: list[dict[signal.Signals, Any]] = []
_seen: set[int] = set()


def first_time(job: int) -> bool:
    return job not in _seen and not _seen.add(job)  # type: ignore[func-returns-value]


@handler("kit.thread")
def in_thread(job: Job) -> str:  # noqa: ARG001
    return threading.current_thread().name


@handler("kit.process", runs_in="process", timeout=20)
def in_process(job: Job) -> int:  # noqa: ARG001
    return os.getpid()


@handler("kit.write", transaction=True)
async def write(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("create table written (n int)")
    if job.payload.get("fail"):
        raise ValueError("after writing")


@handler("kit.lend")
async def lend(job: Job) -> int:
    async with job.connection() as connection:
        return await connection.fetchval("select 42")


KIT = [order, in_thread, write, lend]


async def enqueue(connection: asyncpg.Connection, kind: str, payload: dict[str, Any], **options: Any) -> int:
    names = "".join(f", {name} => ${place}" for place, name in enumerate(options, start=3))
    job: int = await connection.fetchval(
        f"select id from howdah.enqueue($1, $2{names})", kind, payload, *options.values()
    )
    return job


# -- one attempt ---------------------------------------------------------------------------------------------------------


async def test_one_attempt_is_told_with_its_result_reports_and_log() -> None:
    outcome = await run_job(order, Order(number=7), resources={"mail": "fake"}, headers={"trace": "t1"})
    assert outcome.completed
    assert outcome.error is None
    result = {
        "number": 7,
        "resources": {"mail": "fake"},
        "headers": {"trace": "t1"},
        "loop": id(asyncio.get_running_loop()),
    }
    assert outcome.result == result
    assert outcome.reports == [{"percent": 50}, {"percent": 100}]
    assert [(record.getMessage(), vars(record)["number"]) for record in outcome.logs] == [("order taken", 7)]


async def test_every_way_in_which_an_attempt_can_end_is_told_apart() -> None:
    assert (await run_job(order, {"number": 1}, id=-1)).snoozed == timedelta(hours=1)
    assert (await run_job(order, {"number": 2})).discarded == "hopeless"
    cancelled = await run_job(order, {"number": 3})
    assert (cancelled.outcome, cancelled.reason, cancelled.error) == ("cancelled", "not wanted", None)
    retried = await run_job(order, {"number": 4})
    assert retried.outcome == "retried"
    assert retried.delay is not None
    with pytest.raises(ValueError, match="nothing in stock"):
        retried.check()
    assert (await run_job(order, {"number": 4}, attempt=2)).outcome == "dead"
    late = await run_job(order, {"number": 5}, timeout=0.1, attempt=2)
    assert late.outcome == "dead"
    assert isinstance(late.error, HandlerTimeoutError)
    refused = await run_job(order, {"number": "many"})
    assert refused.outcome == "dead"
    assert refused.discarded is None
    assert "number: Input should be a valid integer" in str(refused.error)


async def test_handlers_in_threads_and_processes_run_where_they_belong() -> None:
    assert "handler" in (await run_job(in_thread)).result
    pid = (await run_job("kit.process")).check().result
    assert isinstance(pid, int)
    assert pid != os.getpid()


async def test_what_a_handler_wrote_is_rolled_back_unless_the_test_keeps_it(connection: asyncpg.Connection) -> None:
    written = "select to_regclass('written') is not null"
    with pytest.raises(HowdahError, match="run_job needs connection="):
        await run_job(write)
    assert (await run_job(write, connection=connection)).completed
    assert not await connection.fetchval(written)
    assert (await run_job(write, {"fail": True}, connection=connection, commit=True)).outcome == "retried"
    assert not await connection.fetchval(written)
    assert (await run_job(write, connection=connection, commit=True)).completed
    assert await connection.fetchval(written)
    assert (await run_job(lend, connection=connection)).result == 42
    assert "needs connection=" in str((await run_job(lend)).error)


@handler("kit.chain", transaction=True)
async def in_steps(job: Job, connection: asyncpg.Connection) -> Any:
    assert await connection.fetchval("select 1") == 1
    await job.enqueue("kit.thread", {"from": job.id}, queue="next")
    return [await job.step("first", len, "abc"), await job.step("second", len, "abc")]


async def test_steps_and_enqueued_jobs_are_told_and_kept_with_the_handlers_work(connection: asyncpg.Connection) -> None:
    outcome = await run_job(in_steps, connection=connection, steps={"first": 100}, commit=True)
    assert outcome.check().result == [100, 3]
    assert outcome.steps == {"first": 100, "second": 3}
    assert outcome.enqueued == [{"kind": "kit.thread", "payload": {"from": 1}, "queue": "next"}]
    await assert_enqueued(connection, "kit.thread", payload={"from": 1}, queue="next", count=1)


async def test_what_is_no_handler_is_named() -> None:
    with pytest.raises(HandlersError, match="enqueue is no handler: decorate it"):
        await run_job(enqueue)
    with pytest.raises(HandlersError, match=r"no handler of kind 'kit\.none' is imported; there are .*kit\.order"):
        await run_job("kit.none")


# -- a worker in the test's process --------------------------------------------------------------------------------------


async def test_a_worker_in_the_tests_own_loop_runs_everything_and_leaves_signals_and_ports_alone(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody's settings for their real worker must not lead the test astray.
    monkeypatch.setenv("HOWDAH_LISTEN_DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    monkeypatch.setenv("HOWDAH_QUEUES", "elsewhere:1")
    monkeypatch.setenv("HOWDAH_HISTORY_DAYS", "0")
    monkeypatch.setattr("howdah.endpoint.Endpoint.open", None)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    seen_signals.clear()
    for number in (7, 2, 3):
        await enqueue(connection, "kit.order", {"number": number}, queue="orders")
    await enqueue(connection, "kit.thread", {}, queue="one that nobody named")
    other = await enqueue(connection, "kit.other", {})
    run = await run_until_empty(database, KIT)
    assert seen_signals == [before] * 3
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert sorted(job.state for job in run.ended) == ["cancelled", "completed", "completed", "dead"]
    [ordered] = [job for job in run.completed if job.kind == "kit.order"]
    assert ordered.result["loop"] == id(asyncio.get_running_loop())
    assert (run.processed, run.left) == (4, 0)
    assert repr(run.dead) == "[<kit.order 2 dead at attempt 1: Discard: hopeless>]"
    assert await connection.fetchval("select state from howdah.job_status where id = $1", other) == "ready"
    assert await connection.fetchval("select count(*) from howdah.workers") == 0


async def test_what_waits_for_a_time_is_left_or_runs_now_as_the_test_asks(
    database: Database, connection: asyncpg.Connection
) -> None:
    await enqueue(connection, "kit.order", {"number": 1})
    await enqueue(connection, "kit.order", {"number": 4})
    await enqueue(connection, "kit.order", {"number": 7}, delay=timedelta(days=1))
    await connection.execute("select howdah.enqueue_coalesced('kit.thread', '{}', 'key', '1 hour')")
    run = await run_until_empty(database, KIT)
    assert (run.ended, run.processed, run.left) == ([], 2, 3)
    began = time.monotonic()
    run = await run_until_empty(database, KIT, skip_delays=True)
    assert time.monotonic() - began < 5
    assert run.left == 0
    assert sorted(job.kind for job in run.completed) == ["kit.order", "kit.order", "kit.thread"]
    with pytest.raises(
        AssertionError, match=r"(?s)<kit\.order 2 dead at attempt \d: ValueError: nothing in stock>.*Traceback"
    ):
        run.check()


async def test_a_run_without_end_fails_with_what_is_left(database: Database, connection: asyncpg.Connection) -> None:
    job = await enqueue(connection, "kit.order", {"number": 5})
    with pytest.raises(
        AssertionError, match=rf"not empty after 0\.5 s; left are:\n  kit\.order {job} ready in queue default"
    ):
        await run_until_empty(database, order, timeout=0.5)
    # It was given back, and nothing of the worker stays.
    assert await connection.fetchval("select attempt from howdah.jobs") == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "lifeline"]


async def test_resources_can_be_given_in_place_of_lifespans(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.lifespans, "mail", None)
    await enqueue(connection, "kit.order", {"number": 7})
    run = await run_until_empty(database, order, resources={"mail": "fake"})
    assert run.check().completed[0].result["resources"] == {"mail": "fake"}


async def test_queues_and_handlers_can_be_chosen(database: Database, connection: asyncpg.Connection) -> None:
    for queue in ("a", "b"):
        await enqueue(connection, "kit.order", {"number": 7}, queue=queue)
    run = await run_until_empty(database, sys.modules[__name__], queues=["b"])
    assert [job.queue for job in run.ended] == ["b"]
    assert run.left == 1
    with pytest.raises(HandlersError, match="module 'json' declares no handlers"):
        await run_until_empty(database, "json")


async def test_the_plain_functions_work_beside_a_running_loop_and_without_one(
    database: Database, connection: asyncpg.Connection
) -> None:
    def without_a_loop() -> None:
        assert sync.assert_enqueued(database, "kit.order", count=1)
        assert len(sync.run_until_empty(database, order).completed) == 1
        sync.assert_not_enqueued(database.url, "kit.order")
        assert sync.run_job(order, {"number": 7}).completed

    await enqueue(connection, "kit.order", {"number": 7})
    await asyncio.to_thread(without_a_loop)
    await enqueue(connection, "kit.order", {"number": 7})
    without_a_loop()


# -- what is enqueued ----------------------------------------------------------------------------------------------------


async def test_what_an_open_transaction_has_enqueued_is_seen_by_its_connection_alone(
    connect: Connect, database: Database
) -> None:
    connection = await connect()
    async with connection.transaction():
        await enqueue(
            connection, "kit.order", {"number": 7, "post": {"id": str(GIVEN), "tags": [1, 2]}}, subject="post:1"
        )
        await connection.execute("select howdah.enqueue_coalesced('kit.thread', '{\"a\": 1}', 'key', '1 hour')")
        [job] = await assert_enqueued(
            connection,
            "kit.order",
            payload={"number": ANY, "post": {"id": GIVEN}},
            subject="post:1",
            queue="default",
            count=1,
        )
        assert job.payload["post"]["tags"] == [1, 2]
        await assert_enqueued(connection, "kit.thread", payload={"a": 1}, count=1)
        for wrong in (
            {"payload": {"number": 8}},
            {"subject": "post:2"},
            {"queue": "mail"},
            {"payload": {"post": {"x": 1}}},
        ):
            await assert_not_enqueued(connection, "kit.order", **wrong)  # type: ignore[arg-type]
        await assert_not_enqueued(database, "kit.order")


async def test_a_failed_assertion_shows_what_is_there_instead(connection: asyncpg.Connection) -> None:
    with pytest.raises(AssertionError, match=r"no job is enqueued: kit\.order\nno job is enqueued at all"):
        await assert_enqueued(connection, "kit.order")
    await enqueue(connection, "kit.thread", {})
    await enqueue(connection, "kit.order", {"number": 7, "post": {"id": 1}})
    with pytest.raises(AssertionError) as caught:
        await assert_enqueued(connection, "kit.order", payload={"post": {"id": 2}}, queue="default")
    assert str(caught.value).splitlines() == [
        'no job is enqueued: kit.order queue=default with {"post":{"id":2}}',
        "there are:",
        '  kit.order 2 ready queue=default {"post":{"id":1},"number":7}   <- payload.post.id is 1, not 2',
        "  kit.thread 1 ready queue=default {}",
    ]
    with pytest.raises(AssertionError, match=r"^1 jobs are enqueued and not 2: kit\.order"):
        await assert_enqueued(connection, "kit.order", count=2)
    with pytest.raises(AssertionError, match=r"enqueued, and should not be: kit\.thread\n  kit\.thread 1 ready"):
        await assert_not_enqueued(connection, "kit.thread")


# -- in somebody's suite -------------------------------------------------------------------------------------------------

INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of somebody's, on the server of ours."""
    monkeypatch.setenv("HOWDAH_TEST_DATABASE_URL", url_of(os.environ["HOWDAH_TEST_TEMPLATE_URL"], "postgres"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    pytester.makefile(".ini", pytest=INI)
    return pytester


def test_the_examples_of_the_documentation_pass_with_one_server_for_all_processes(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOWDAH_TEST_DATABASE_URL")
    monkeypatch.setenv("TMPDIR", str(suite.mkdir("temporary")))
    text = DOCS.read_text()
    files = re.findall(r"```(?:python|ini)\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(files) == 8
    for name, code in files:
        (suite.path / name).write_text(code)
    suite.mkdir("migrations").joinpath("0001_users.sql").write_text(re.findall(r"```sql\n(.*?)```", text, re.DOTALL)[0])
    # In alphabetical order these come first: two go to each process.
    (suite.path / "test_a_shared.py").write_text(
        "import os, pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_server(howdah_database, n):\n"
        "    open('servers', 'a').write(f\"{os.environ['PYTEST_XDIST_WORKER']} {howdah_database.url.split('/')[2]}\\n\")\n"
    )
    result = suite.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1 + 4 + 1 + 1 + 1 + 4)
    used = {tuple(line.split()) for line in (suite.path / "servers").read_text().splitlines()}
    assert len({worker for worker, _ in used}) == 2
    assert len({server for _, server in used}) == 1
    eventually(lambda: not any((suite.path / "temporary").glob("howdah-*")))


def test_a_failing_test_says_what_is_wrong_in_the_users_words(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest
        from howdah import Job, handler
        from howdah.testing import assert_enqueued, run_until_empty, sync

        @handler("mine")
        async def mine(job: Job) -> None:
            raise ValueError("template is missing")

        @pytest.fixture
        async def connection(howdah_database):
            connection = await howdah_database.connect()
            yield connection
            await connection.close()

        async def test_async(connection):
            await assert_enqueued(connection, "mine")

        def test_sync(howdah_database):
            sync.assert_enqueued(howdah_database, "mine", count=2)

        async def test_run(howdah_database, connection):
            await connection.execute("select howdah.enqueue('mine', max_attempts => 1)")
            (await run_until_empty(howdah_database)).check()

        def test_passes():
            pass
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=3, passed=1)
    result.stdout.fnmatch_lines(
        [
            '>       await assert_enqueued(connection, "mine")',
            "E       AssertionError: no job is enqueued: mine",
            "E       no job is enqueued at all",
            '>       sync.assert_enqueued(howdah_database, "mine", count=2)',
            "E       AssertionError: no job is enqueued: mine",
            ">       (await run_until_empty(howdah_database)).check()",
            "E       AssertionError: <mine 1 dead at attempt 1: ValueError: template is missing>",
            '*raise ValueError("template is missing")',
        ]
    )
    assert "asyncio" not in "\n".join(line for line in result.outlines if line.endswith("Error") and ".py:" in line)


async def test_migrations_and_the_hook_make_the_template_and_it_is_dropped_at_the_end(
    suite: pytest.Pytester, connection: asyncpg.Connection
) -> None:
    for number, name in enumerate(("orders", "mail")):
        suite.mkdir(f"sql{number}").joinpath("0001_tables.sql").write_text(f"create table {name} (id int);")
    suite.makefile(".ini", pytest=INI + "howdah_migrations = sql0 sql1\n")
    suite.makeconftest(
        """
        import asyncio, asyncpg, pathlib

        def pytest_howdah_template(url):
            async def prepare():
                connection = await asyncpg.connect(url)
                await connection.execute("insert into orders values (7)")
                await connection.close()
            asyncio.run(prepare())
            with pathlib.Path("prepared").open("a") as file:
                file.write(url.rpartition("/")[2].partition("?")[0] + "\\n")
        """
    )
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        async def test_it(howdah_database, number):
            connection = await howdah_database.connect()
            assert await connection.fetchval("select array_agg(id) from orders") == [7]
            await connection.execute("insert into orders values (8); insert into mail values (1)")
            await connection.close()
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=2)
    [template] = (suite.path / "prepared").read_text().splitlines()
    assert template.startswith("howdah_template_")
    assert not await connection.fetchval("select count(*) from pg_database where datname = $1", template)


def test_a_server_that_cannot_be_had_is_told_once_in_a_line(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOWDAH_TEST_DATABASE_URL", "postgresql://127.0.0.1:1/postgres")
    suite.makepyfile("def test_one(howdah_database): ...\ndef test_two(howdah_database): ...\ndef test_three(): ...")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(
        ["howdah_database: no template on the server that HOWDAH_TEST_DATABASE_URL names: *Connect call failed*"]
    )


def test_a_suite_that_uses_none_of_it_imports_none_of_it() -> None:
    code = "import sys, howdah.testing.plugin, howdah.testing; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncpg", "pydantic", "aiohttp", "uvloop", "orjson", "click", "asyncio"} & set(loaded)
    # What pytest itself brings is not ours.
    assert {name for name in loaded if name.startswith("howdah")} == {
        "howdah", "howdah.version", "howdah.testing", "howdah.testing.plugin",
    }  # fmt: skip
    assert urlsplit(tempfile.gettempdir())
