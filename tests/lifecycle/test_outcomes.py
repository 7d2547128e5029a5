"""What a handler returns, raises or does becomes the right outcome, whatever it is, and hurts no other job."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.facts import end_of, is_empty, make_runs, runs, state_of
from support.jobs import enqueue, enqueue_many, status

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures


# -- where handlers run ------------------------------------------------------------------------------------------------


async def test_handlers_run_in_the_loop_in_a_thread_or_in_a_process_as_they_ask(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        def whereabouts(job):
            return {"pid": os.getpid(), "main": threading.current_thread() is threading.main_thread(),
                    "payload": job.payload, "attempt": job.attempt, "headers": job.headers}

        @handler("async")
        async def in_loop(job: Job): return whereabouts(job)

        @handler("thread")
        def in_thread(job: Job): return whereabouts(job)

        @handler("process", runs_in="process")
        def in_process(job: Job): return whereabouts(job)
        """
    )
    found = {}
    for kind in ("async", "thread", "process"):
        job = await enqueue(connection, kind, {"n": 1}, headers={"h": 2})
        ended = await end_of(connection, job)
        assert ended["state"] == "completed", ended["error"]
        found[kind] = ended["result"]
        assert (found[kind]["payload"], found[kind]["attempt"], found[kind]["headers"]) == ({"n": 1}, 1, {"h": 2})
    pid = worker.process.pid
    assert (found["async"]["pid"], found["async"]["main"]) == (pid, True)
    assert (found["thread"]["pid"], found["thread"]["main"]) == (pid, False)
    assert found["process"]["pid"] != pid


async def test_thread_and_process_handlers_fail_as_async_ones_do(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        @handler("thread", max_attempts=1)
        def in_thread(job: Job): raise ValueError("in a thread")

        @handler("process", max_attempts=1, runs_in="process")
        def in_process(job: Job): raise ValueError("in a process")

        @handler("dies", max_attempts=1, runs_in="process")
        def dies(job: Job): os._exit(3)

        @handler("snoozes", runs_in="process")
        def snoozes(job: Job): return Snooze(3600)

        @handler("unpicklable", max_attempts=1, runs_in="process")
        def unpicklable(job: Job):
            class Odd(Exception):
                def __init__(self, one, two): super().__init__("odd one")
            raise Odd(1, 2)
        """
    )
    kinds = ("thread", "process", "dies", "unpicklable")
    jobs = {kind: await enqueue(connection, kind) for kind in kinds}
    snoozed = await enqueue(connection, "snoozes")
    ended = {kind: await end_of(connection, job) for kind, job in jobs.items()}
    assert {kind: row["state"] for kind, row in ended.items()} == dict.fromkeys(kinds, "dead")
    assert (ended["thread"]["error"], ended["thread"]["errors"][0]["type"]) == ("in a thread", "ValueError")
    assert "in_thread" in ended["thread"]["errors"][0]["stack"]
    assert "in a process" in ended["process"]["error"]
    assert "in_process" in ended["process"]["errors"][0]["stack"]
    assert "died" in ended["dies"]["error"]
    await aeventually(lambda: is_in(connection, snoozed, "scheduled"))


async def test_context_variables_do_not_leak_from_job_to_job_in_the_same_slot(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        tenant = contextvars.ContextVar("tenant", default="nobody")

        @handler("async")
        async def in_loop(job: Job):
            found = tenant.get()
            tenant.set("somebody")
            await asyncio.sleep(0)
            return [found, tenant.get()]

        @handler("thread")
        def in_thread(job: Job):
            found = tenant.get()
            tenant.set("somebody")
            return [found, tenant.get()]
        """,
        queues="default:1",
    )
    for kind in ("async", "async", "thread", "thread", "async"):
        ended = await end_of(connection, await enqueue(connection, kind))
        assert ended["result"] == ["nobody", "somebody"]


# -- results -----------------------------------------------------------------------------------------------------------

RESULTS = """
import math

class Opaque:
    __slots__ = ()
    def __str__(self): raise RuntimeError("no text")

class Model(BaseModel):
    text: str

def nested(depth):
    value = []
    for _ in range(depth): value = [value]
    return value

def endless():
    value = {}
    value["me"] = value
    return value

VALUES = {
    "nul": lambda: {"a\\0b": "c\\0d"},
    "surrogate": lambda: {"text \\ud800": ["\\udfff"]},
    "model": lambda: Model.model_construct(text="\\ud800"),
    "nan": lambda: [math.nan, math.inf, 1.5],
    "huge": lambda: "x" * (3 << 20),
    "big integer": lambda: 10 ** 40,
    "bytes": lambda: b"bytes",
    "opaque": lambda: Opaque(),
    "deep": lambda: nested(100_000),
    "endless": lambda: endless(),
    "set": lambda: {1},
    "keys": lambda: {1: "one", None: "none"},
}

@handler("odd")
async def odd(job: Job): return VALUES[job.payload["what"]]()

@handler("plain")
async def plain(job: Job): return job.payload
"""


@pytest.mark.fault(
    "Data", "results with NUL, half surrogates, NaN, of 3 MB, nested without end, no JSON at all", "mended, or a stub that says so; its batch is kept"
)  # fmt: skip
async def test_a_result_that_cannot_be_stored_becomes_one_that_can_and_its_batch_is_kept(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    odd = (
        "nul",
        "surrogate",
        "model",
        "nan",
        "huge",
        "big integer",
        "bytes",
        "opaque",
        "deep",
        "endless",
        "set",
        "keys",
    )
    plain = [{"kind": "plain", "payload": {"n": n}} for n in range(200)]
    rows = await enqueue_many(
        connection, *plain[:100], *({"kind": "odd", "payload": {"what": what}} for what in odd), *plain[100:]
    )
    await daemon(RESULTS)
    await aeventually(lambda: is_empty(connection))
    ended = {row["id"]: row for row in await connection.fetch("select * from howdah.job_status")}
    assert {row["state"] for row in ended.values()} == {"completed"}
    assert len(ended) == len(rows)
    results = {row["payload"]["what"]: row["result"] for row in ended.values() if row["kind"] == "odd"}
    assert results["nul"] == {"a\ufffdb": "c\ufffdd"}
    [(key, value)] = results["surrogate"].items()
    assert (key[:5], value[0]) != ("", "")
    assert results["nan"] == [None, None, 1.5]
    assert "bytes of JSON, more than" in results["huge"]["howdah"]
    assert results["big integer"] == str(10**40)
    for what in ("bytes", "opaque", "deep", "endless"):
        assert "not JSON" in results[what]["howdah"], what
    assert results["set"] == [1]
    assert results["keys"] == {"1": "one", "null": "none"}
    assert sorted(row["result"]["n"] for row in ended.values() if row["kind"] == "plain") == list(range(200))
    figures.jobs, figures.faults = len(rows), len(odd)


# -- failures ----------------------------------------------------------------------------------------------------------

WRONG = """
from pydantic import model_validator

class Silent(Exception):
    def __str__(self): raise RuntimeError("no text")

def throw(error): raise error

async def awaits_a_cancelled_task():
    task = asyncio.ensure_future(asyncio.sleep(10))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task

WRONG = {
    "silent": lambda: throw(Silent()),
    "surrogate": lambda: throw(ValueError("bad \\ud800 and \\0")),
    "long": lambda: throw(ValueError("x" * 5_000_000)),
    "exit": lambda: throw(SystemExit(3)),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "cancelled": lambda: throw(asyncio.CancelledError()),
    "stop": lambda: throw(StopIteration(1)),
    "group": lambda: throw(BaseExceptionGroup("two", [ValueError("one"), SystemExit(2)])),
    "snooze text": lambda: Snooze("soon"),
    "snooze nan": lambda: Snooze(float("nan")),
    "snooze for ever": lambda: Snooze(float("inf")),
    "snooze too long": lambda: Snooze(timedelta.max),
    "discard none": lambda: Discard(None),
    "cancel none": lambda: Cancel(None),
}

@handler("wrong", max_attempts=1)
async def wrong(job: Job): return WRONG[job.payload["what"]]()

@handler("wrong in thread", max_attempts=1)
def wrong_in_thread(job: Job): return WRONG[job.payload["what"]]()

@handler("wrong task", max_attempts=1)
async def wrong_task(job: Job): await awaits_a_cancelled_task()

@handler("wrong backoff", backoff=lambda attempt: throw(ValueError("backoff")))
async def wrong_backoff(job: Job): raise ValueError("handler")

class Sour(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def check(cls, data): raise KeyError("broken validator")

@handler("wrong validator", max_attempts=1)
async def wrong_validator(job: Job[Sour]): return None

@handler("nan backoff", backoff=lambda attempt: float("nan"))
async def nan_backoff(job: Job): raise ValueError("handler")

@handler("odd cancel")
async def odd_cancel(job: Job): return Cancel("because \\0 \\ud800")

@handler("odd discard")
async def odd_discard(job: Job): return Discard("because \\0 \\ud800")

@handler("odd progress")
async def odd_progress(job: Job): await job.report({"\\0": "\\ud800"})

@handler("plain")
async def plain(job: Job): return job.payload
"""
WRONG_WAYS = (
    "silent", "surrogate", "long", "exit", "interrupt", "cancelled", "stop", "group",
    "snooze text", "snooze nan", "snooze for ever", "snooze too long", "discard none", "cancel none",
)  # fmt: skip


@pytest.mark.fault(
    "Data", "handlers that raise SystemExit, StopIteration and groups, or return delays that make no sense", "their job ends; the worker goes on"
)  # fmt: skip
async def test_whatever_a_handler_raises_or_returns_its_job_ends_and_the_daemon_goes_on(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    worker = await daemon(WRONG)
    plain = [{"kind": "plain"} for _ in range(100)]
    wrong = [
        *({"kind": "wrong", "payload": {"what": what}} for what in WRONG_WAYS),
        *({"kind": "wrong in thread", "payload": {"what": what}} for what in WRONG_WAYS),
        *({"kind": kind} for kind in ("wrong task", "wrong validator", "odd cancel", "odd discard", "odd progress")),
        # Without a delay that makes sense the default one is taken.
        *({"kind": kind, "max_attempts": 2} for kind in ("wrong backoff", "nan backoff")),
    ]
    await enqueue_many(connection, *plain[:50], *wrong, *plain[50:])

    async def all_have_an_outcome() -> bool:
        return not await connection.fetchval(
            "select exists (select from howdah.jobs where state in ('ready', 'running'))"
        )

    try:
        await aeventually(all_have_an_outcome, timeout=8)
    except AssertionError as error:
        left = await connection.fetch(
            "select kind, payload, state, attempt from howdah.jobs where state in ('ready', 'running')"
        )
        raise AssertionError([tuple(row) for row in left] + [worker.output()[-3000:]]) from error
    rows = await connection.fetch("select kind, payload ->> 'what' as what, state, error from howdah.job_status")
    states = {(row["kind"], row["what"]): row["state"] for row in rows}
    assert sum(row["state"] == "completed" for row in rows if row["kind"] == "plain") == 100
    for kind in ("wrong", "wrong in thread"):
        found = {what: states[kind, what] for what in WRONG_WAYS}
        assert found.pop("cancel none") == "cancelled"
        assert found == dict.fromkeys(found, "dead"), kind
    assert states["wrong task", None] == "dead"
    assert states["wrong validator", None] == "dead"
    assert states["odd cancel", None] == "cancelled"
    assert states["odd discard", None] == "dead"
    assert states["odd progress", None] == "completed"
    assert states["wrong backoff", None] == "retrying"
    assert states["nan backoff", None] == "retrying"
    assert worker.process.poll() is None
    figures.jobs, figures.faults = len(plain) + len(wrong), len(wrong)


async def test_a_payload_that_does_not_validate_is_dead_at_once_naming_the_field_and_not_its_value(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        from pydantic import Field

        class Order(BaseModel):
            number: int = Field(gt=0)
            card: str = Field(max_length=4)

        @handler("order", max_attempts=5)
        async def order(job: Job[Order]) -> int:
            return job.payload.number
        """
    )
    ended = await end_of(connection, await enqueue(connection, "order", {"number": 7, "card": "4242"}))
    assert (ended["state"], ended["result"]) == ("completed", 7)
    ended = await end_of(connection, await enqueue(connection, "order", {"number": 7, "card": "4242424242"}))
    assert (ended["state"], ended["attempt"]) == ("dead", 1)
    assert ended["error"].startswith("order: card: ")
    assert "4242" not in str(ended["errors"])


async def test_a_failed_attempt_is_retried_after_its_backoff_and_the_last_one_is_dead_with_all_errors(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        @handler("fails", max_attempts=3, backoff=lambda attempt: 0.2 * attempt)
        async def fails(job: Job) -> None:
            raise ValueError(f"attempt {job.attempt} of {job.max_attempts}")
        """
    )
    job = await enqueue(connection, "fails")
    seen = await aeventually(lambda: row_in(connection, job, "retrying"))
    assert (seen["attempt"], seen["error"]) == (1, "attempt 1 of 3")
    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"], ended["max_attempts"], ended["crashes"]) == ("dead", 3, 3, 0)
    errors = ended["errors"]
    assert [error["message"] for error in errors] == [f"attempt {n} of 3" for n in (1, 2, 3)]
    assert [(error["type"], error["attempt"]) for error in errors] == [("ValueError", n) for n in (1, 2, 3)]
    assert all("in fails" in error["stack"] for error in errors)
    assert (ended["finished_at"] - ended["created_at"]).total_seconds() >= 0.2 + 0.4


async def test_max_attempts_of_the_job_comes_before_that_of_the_kind(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        @handler("fails", max_attempts=5, backoff=lambda attempt: 0)
        async def fails(job: Job) -> None:
            raise ValueError
        """
    )
    own = await enqueue(connection, "fails", max_attempts=2)
    default = await enqueue(connection, "fails")
    assert (await end_of(connection, own))["attempt"] == 2
    assert (await end_of(connection, default))["attempt"] == 5


async def test_retry_for_and_discard_for_decide_before_the_attempts_do(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table public.parent (id int primary key)")
    await connection.execute("create table public.child (parent int references public.parent)")
    await daemon(
        """
        INSERT = "insert into public.child values ($1)"

        @handler("child", transaction=True)
        async def child(job: Job, connection: asyncpg.Connection) -> None:
            await connection.execute(INSERT, job.payload["parent"])

        @handler("patient child", max_attempts=20, backoff=lambda attempt: 0.05, transaction=True,
                 retry_for=[asyncpg.ForeignKeyViolationError])
        async def patient_child(job: Job, connection: asyncpg.Connection) -> None:
            await connection.execute(INSERT, job.payload["parent"])

        @handler("hopeless", discard_for=[LookupError])
        async def hopeless(job: Job) -> None:
            raise KeyError("gone")
        """
    )
    orphan = await end_of(connection, await enqueue(connection, "child", {"parent": 42}))
    assert (orphan["state"], orphan["attempt"]) == ("dead", 1)
    assert "parent" in orphan["error"]
    assert "42" in orphan["error"]
    hopeless = await end_of(connection, await enqueue(connection, "hopeless"))
    assert (hopeless["state"], hopeless["attempt"]) == ("dead", 1)

    patient = await enqueue(connection, "patient child", {"parent": 42})
    await aeventually(lambda: row_in(connection, patient, "retrying"))
    await connection.execute("insert into public.parent values (42)")
    assert (await end_of(connection, patient))["state"] == "completed"


# -- timeouts ----------------------------------------------------------------------------------------------------------


async def test_a_handler_past_its_timeout_is_stopped_and_the_attempt_has_failed(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("async", timeout=0.2, max_attempts=1)
        async def in_loop(job: Job) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                Path("cleaned up").touch()

        @handler("own", timeout=60, max_attempts=1)
        async def own(job: Job) -> None:
            await asyncio.sleep(60)

        @handler("thread", timeout=0.2, max_attempts=1)
        def in_thread(job: Job) -> None:
            for _ in range(600):
                if Path("enough").exists(): return
                time.sleep(0.1)

        @handler("stubborn", timeout=0.2, max_attempts=1)
        async def stubborn(job: Job) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "swallowed it"
        """
    )
    jobs = {kind: await enqueue(connection, kind) for kind in ("async", "thread")}
    jobs["own"] = await enqueue(connection, "own", timeout=timedelta(seconds=0.3))
    for kind, job in jobs.items():
        ended = await end_of(connection, job)
        assert (ended["state"], ended["errors"][0]["type"]) == ("dead", "HandlerTimeoutError"), kind
        assert "timeout of 0." in ended["error"]
        assert 0.2 <= ended["duration"].total_seconds() < 2, kind
    assert (worker.folder / "cleaned up").exists()
    # It came to an end in the time that it was given after all, and said so.
    assert (await end_of(connection, await enqueue(connection, "stubborn")))["state"] in {"completed", "dead"}
    (worker.folder / "enough").touch()


async def test_a_process_handler_past_its_timeout_is_killed_for_real(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("spin", runs_in="process", timeout=1, max_attempts=1)
        def spin(job: Job) -> None:
            Path("pid").write_text(str(os.getpid()))
            while True: pass

        @handler("quick", runs_in="process")
        def quick(job: Job) -> int:
            return os.getpid()
        """
    )
    job = await enqueue(connection, "spin")
    pid = int(await aeventually(lambda: (worker.folder / "pid").read_text()))
    assert is_alive(pid)
    ended = await end_of(connection, job)
    assert (ended["state"], ended["errors"][0]["type"]) == ("dead", "HandlerTimeoutError")
    await aeventually(lambda: not is_alive(pid))
    assert (await end_of(connection, await enqueue(connection, "quick")))["state"] == "completed"


async def test_processes_that_die_are_replaced(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await daemon(
        """
        @handler("quick", runs_in="process", max_attempts=9, backoff=lambda attempt: 0.05)
        def quick(job: Job) -> int:
            return os.getpid()

        @handler("dies", runs_in="process", max_attempts=3, backoff=lambda attempt: 0)
        def dies(job: Job) -> int:
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    for _ in range(3):
        ended = await end_of(connection, await enqueue(connection, "quick"))
        assert ended["state"] == "completed"
        os.kill(ended["result"], signal.SIGKILL)
    ended = await end_of(connection, await enqueue(connection, "dies"))
    assert (ended["state"], ended["attempt"]) == ("dead", 3)
    assert (await end_of(connection, await enqueue(connection, "quick")))["state"] == "completed"


# -- outcomes that are asked for ---------------------------------------------------------------------------------------


async def test_snooze_comes_again_uncounted_and_discard_and_cancel_end_the_job_with_their_reason(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        seen = {}

        @handler("snoozes", max_attempts=2)
        async def snoozes(job: Job) -> Any:
            seen[job.id] = seen.get(job.id, 0) + 1
            if seen[job.id] <= 5:
                return Snooze(0.05 if seen[job.id] % 2 else timedelta(seconds=0.05))
            return {"runs": seen[job.id], "attempt": job.attempt}

        @handler("discards", max_attempts=9)
        async def discards(job: Job): return Discard("no such user")

        @handler("cancels")
        async def cancels(job: Job): return Cancel("not wanted")
        """
    )
    snoozed = await end_of(connection, await enqueue(connection, "snoozes"))
    assert (snoozed["state"], snoozed["result"]) == ("completed", {"runs": 6, "attempt": 1})
    assert snoozed["errors"] is None
    discarded = await end_of(connection, await enqueue(connection, "discards"))
    assert (discarded["state"], discarded["error"], discarded["attempt"]) == ("dead", "no such user", 1)
    cancelled = await end_of(connection, await enqueue(connection, "cancels"))
    assert (cancelled["state"], cancelled["cancelled_by"], cancelled["cancel_reason"]) == (
        "cancelled",
        "handler",
        "not wanted",
    )


# -- what a running job may do -----------------------------------------------------------------------------------------


async def test_every_log_line_of_a_handler_carries_its_jobs_id(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        async def deeper():
            await asyncio.sleep(0)
            logging.getLogger("library").warning("from a library")

        @handler("async")
        async def in_loop(job: Job) -> None:
            job.log.info("own line", extra={"colour": "red"})
            await deeper()

        @handler("thread")
        def in_thread(job: Job) -> None:
            job.log.info("own line")
            logging.getLogger("library").warning("from a library")

        @handler("odd")
        async def odd(job: Job) -> None:
            job.log.info("odd \\ud800 line \\x1b[31m\\n", extra={"number": 10 ** 40, "thing": object()})
        """
    )
    for kind in ("async", "thread"):
        job = await enqueue(connection, kind, subject="user:1")
        await end_of(connection, job)
        for event in ("own line", "from a library"):
            line = worker.log_events(event)[-1]
            expected = {"job": job, "kind": kind, "queue": "default", "attempt": 1, "subject": "user:1"}
            assert {name: line.get(name) for name in expected} == expected
    assert worker.log_events("own line")[0]["colour"] == "red"
    assert "job" not in worker.log_events("started")[0]

    job = await enqueue(connection, "odd")
    assert (await end_of(connection, job))["state"] == "completed"
    [line] = [line for line in worker.logs() if line["event"].startswith("odd ")]
    assert line["job"] == job
    assert not [line for line in worker.logs() if "text" in line], worker.output()


async def test_progress_is_seen_while_the_job_runs_is_throttled_and_its_last_word_is_never_lost(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        """
        create table public.writes (progress jsonb);
        create function public.note() returns trigger language plpgsql as $$
        begin insert into public.writes values (new.progress); return null; end $$;
        create trigger note after update of progress on howdah.jobs for each row
        when (new.progress is distinct from old.progress) execute function public.note()"""
    )
    worker = await daemon(
        """
        @handler("long")
        async def long(job: Job) -> None:
            n = 0
            while not Path("enough").exists():
                n += 1
                await job.report({"n": n})
                await asyncio.sleep(0.001)
            await job.report({"n": "last"})

        @handler("short")
        async def short(job: Job) -> None:
            await job.report({"done": "all"})

        @handler("fails", max_attempts=1)
        async def fails(job: Job) -> None:
            await job.report({"done": "half"})
            raise ValueError
        """
    )
    job = await enqueue(connection, "long")
    seen = await aeventually(lambda: progress_of(connection, job))
    assert seen["n"] > 1
    await aeventually(lambda: progress_is_beyond(connection, job, seen["n"]))
    assert (await status(connection, job))["state"] == "running"
    (worker.folder / "enough").touch()
    ended = await end_of(connection, job)
    assert ended["progress"] == {"n": "last"}
    writes = await connection.fetchval("select count(*) from public.writes")
    assert writes <= ended["duration"].total_seconds() + 1

    for kind, last in (("short", {"done": "all"}), ("fails", {"done": "half"})):
        assert (await end_of(connection, await enqueue(connection, kind)))["progress"] == last


async def test_handlers_share_a_bounded_pool_of_connections(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    await daemon(
        """
        @handler("ask")
        async def ask(job: Job) -> dict[str, Any]:
            async with job.connection() as connection:
                await connection.execute("insert into public.runs (job, pid) values ($1, pg_backend_pid())", job.id)
                await connection.execute("select pg_sleep(0.02)")
                return await connection.fetchval("select jsonb_build_object('answer', 42)")
        """,
        pool_size=3,
    )
    await enqueue_many(connection, *({"kind": "ask"} for _ in range(30)))
    await aeventually(lambda: is_empty(connection))
    assert await connection.fetch("select distinct result from howdah.job_history") == [({"answer": 42},)]
    assert len(set(await runs(connection, "pid"))) <= 3
    assert len(await runs(connection, "job")) == 30


async def is_in(connection: asyncpg.Connection, job: int, state: str) -> bool:
    return await state_of(connection, job) == state


async def row_in(connection: asyncpg.Connection, job: int, state: str) -> asyncpg.Record | None:
    row = await status(connection, job)
    return row if row["state"] == state else None


async def progress_of(connection: asyncpg.Connection, job: int) -> dict[str, Any] | None:
    return (await status(connection, job))["progress"]


async def progress_is_beyond(connection: asyncpg.Connection, job: int, n: int) -> bool:
    return (await status(connection, job))["progress"]["n"] > n


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_handler_ends_with_its_daemon_and_logs_with_its_jobs_id(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("stays", runs_in="process")
        def stays(job: Job):
            logging.getLogger("mine").info("here", extra={"child": os.getpid()})
            time.sleep(600)
        """
    )
    job = await enqueue(connection, "stays")
    line = await aeventually(lambda: next(iter(worker.log_events("here")), None))
    assert (line["job"], line["kind"]) == (job, "stays")
    assert is_alive(line["child"])
    worker.kill()
    await aeventually(lambda: not is_alive(line["child"]))
