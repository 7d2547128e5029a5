"""A step is done once: what it gave outlives the attempt, and only the holder of the lease may keep one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import count_ends, end_of, has_ended
from support.jobs import enqueue, live
from support.proxy import proxied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

    Connect = Callable[[], Awaitable[asyncpg.Connection]]
    from support.figures import Figures

CALLS = """
_pool = None

async def call(job, name):
    global _pool
    if _pool is None:
        _pool = await asyncpg.create_pool(os.environ["HOWDAH_CALLS_URL"], min_size=1, max_size=2)
    return await _pool.fetchval(
        "insert into public.calls (job, attempt, pid, name) values ($1, $2, $3, $4) returning id", job.id, job.attempt, os.getpid(), name)
"""


async def make_calls(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "create table public.calls (id bigint generated always as identity, job bigint, attempt int, pid int, name text)"
    )


async def calls(connection: asyncpg.Connection, job: int) -> list[str]:
    return [row[0] for row in await connection.fetch("select name from public.calls where job = $1 order by id", job)]


async def kept(connection: asyncpg.Connection, job: int) -> dict[str, object]:
    return dict(await connection.fetch("select name, result from howdah.steps where job_id = $1", job))


@pytest.mark.faults
@pytest.mark.fault("Process", "killed between two steps of a job", "the first step is not done again")
async def test_a_step_runs_once_although_its_worker_is_killed_after_it_and_the_job_runs_twice(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    await make_calls(connection)
    handlers = CALLS + """
async def ship(job, parcel):
    return {"number": await call(job, "ship"), "parcel": parcel}

@handler("order")
async def order(job: Job) -> Any:
    charged = await job.step("charge", lambda: call(job, "charge"))
    if not Path("../killed").exists():
        Path("../killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"charged": charged, "shipped": await job.step("ship", ship, job, "small"), "pid": os.getpid()}
"""  # fmt: skip
    workers = {}
    for _ in range(2):
        worker = await daemon(handlers, lease_ttl=1, calls_url=database.url)
        workers[worker.process.pid] = worker
    job = await enqueue(connection, "order")
    ended = await end_of(connection, job, timeout=20)
    assert ended["state"] == "completed"
    assert await calls(connection, job) == ["charge", "ship"]
    rows = await connection.fetch("select pid from public.calls order by id")
    assert rows[0]["pid"] != rows[1]["pid"] == ended["result"]["pid"]
    assert ended["result"]["shipped"] == {"number": 2, "parcel": "small"}
    assert await kept(connection, job) == {"charge": 1, "ship": {"number": 2, "parcel": "small"}}
    figures.faults += 1
    await count_ends(connection, figures)


async def test_a_step_of_an_attempt_that_has_lost_its_lease_is_not_kept_and_ends_it(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    await make_calls(connection)
    worker = await daemon(
        CALLS
        + """
async def slow(job):
    await call(job, "slow")
    while not Path("enough").exists(): await asyncio.sleep(0.01)
    return "late"

@handler("order")
async def order(job: Job) -> None:
    try:
        await job.step("slow", slow, job)
    finally:
        try:
            await job.step("next", call, job, "next")
        finally:
            Path("stopped").touch()
    await call(job, "went on")
""",
        calls_url=database.url,
    )
    job = await enqueue(connection, "order")
    await aeventually(lambda: calls(connection, job))
    await connection.execute("update howdah.jobs set lease = 4711 where id = $1", job)  # somebody else has it now
    (worker.folder / "enough").touch()
    await aeventually(lambda: worker.log_events("lost lease"))
    assert (worker.folder / "stopped").exists()
    assert await kept(connection, job) == {}
    # The second step could not know before it was called; it is not kept either.
    assert await calls(connection, job) == ["slow", "next"]
    assert (await live(connection, job))["lease"] == 4711  # type: ignore[index]


async def test_steps_give_what_their_json_says_run_side_by_side_and_one_name_is_one_step(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    await make_calls(connection)
    handlers = CALLS + """
class Model(BaseModel):
    n: int

async def fails(job):
    await call(job, "fails")
    raise ValueError("this time")

@handler("many", max_attempts=2, backoff=lambda attempt: 0)
async def many(job: Job) -> Any:
    values = await asyncio.gather(*(job.step(f"step {n % 5}", call, job, f"step {n % 5}") for n in range(20)))
    plain = [
        await job.step("tuple", lambda: (1, {"a": None})),
        await job.step("none", lambda: None),
        await job.step("model", lambda: Model(n=1)),
        await job.step("x" * 200, lambda: "long name"),
    ]
    try:
        await job.step("fails", fails, job)
    except ValueError:
        await job.step("fails", call, job, "mended")
    if job.attempt == 1:
        raise RuntimeError("again")
    return {"same": len(set(values)), "plain": plain}
"""  # fmt: skip
    await daemon(handlers, calls_url=database.url)
    job = await enqueue(connection, "many")
    ended = await end_of(connection, job)
    assert ended["state"] == "completed", ended["error"]
    assert ended["attempt"] == 2
    assert ended["result"] == {"same": 5, "plain": [[1, {"a": None}], None, {"n": 1}, "long name"]}
    assert sorted(await calls(connection, job)) == sorted([*(f"step {n}" for n in range(5)), "fails", "mended"])


async def test_what_cannot_be_kept_is_refused_with_the_steps_name(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon(
        """
        RESULTS = {"object": object, "bytes": lambda: b"x", "set": lambda: {1}, "huge": lambda: "x" * (1 << 20),
                   "surrogate": lambda: "\\ud800", "nul": lambda: {"a": ["\\0"]}, "keys": lambda: {1: 2}, "x" * 201: int, "": int}

        @handler("odd", max_attempts=1)
        async def odd(job: Job) -> Any:
            problems = {}
            for name, function in RESULTS.items():
                try:
                    await job.step(name, function)
                except Exception as error:
                    problems[name] = f"{type(error).__name__} {error}"
            await job.step("backslash", lambda: "\\\\u0000 is six characters")
            return problems

        @handler("process", runs_in="process", max_attempts=1)
        def in_process(job: Job) -> Any:
            return job.step("one", int)
        """
    )
    job = await enqueue(connection, "odd")
    ended = await end_of(connection, job)
    problems = ended["result"]
    assert len(problems) == 9, problems
    for name, problem in problems.items():
        assert problem.startswith(f"StepError step {name[:200]!r}: "), problem
        assert len(problem) < 400
    assert "1048578 bytes of JSON, more than the 1048576" in problems["huge"]
    assert await kept(connection, job) == {"backslash": "\\u0000 is six characters"}
    refused = await end_of(connection, await enqueue(connection, "process"))
    assert "job.step is not there in a process handler" in refused["error"]


async def test_a_step_survives_the_rollback_of_its_handlers_transaction_and_works_in_a_thread(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    await make_calls(connection)
    handlers = CALLS + """
@handler("transaction", transaction=True, max_attempts=2, backoff=lambda attempt: 0)
async def transaction(job: Job, connection: asyncpg.Connection) -> Any:
    await connection.execute("insert into public.calls (job, name) values ($1, 'inside')", job.id)
    value = await job.step("one", call, job, "one")
    if job.attempt == 1:
        raise RuntimeError("undo")
    return value

@handler("thread", max_attempts=2, backoff=lambda attempt: 0)
def in_thread(job: Job) -> Any:
    here = threading.get_ident()
    inside = []
    value = job.step("one", lambda: inside.append(threading.get_ident() == here) or call(job, "one"))
    if job.attempt == 1:
        Path("inside").write_text(str(inside))
        raise RuntimeError("again")
    return value
"""  # fmt: skip
    worker = await daemon(handlers, calls_url=database.url)
    job = await enqueue(connection, "transaction")
    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"]) == ("completed", 2)
    assert await calls(connection, job) == ["one", "inside"]
    job = await enqueue(connection, "thread")
    ended = await end_of(connection, job)
    assert (ended["state"], ended["attempt"]) == ("completed", 2)
    assert await calls(connection, job) == ["one"]
    assert (worker.folder / "inside").read_text() == "[True]"


async def test_a_step_whose_answer_is_lost_on_the_wire_is_kept_once(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    await make_calls(connection)
    handlers = CALLS + """
@handler("many", max_attempts=50, backoff=lambda attempt: 0)
async def many(job: Job) -> Any:
    return [await job.step(f"{n}", call, job, f"{n}") for n in range(40)]
"""  # fmt: skip
    async with proxied(database.url) as wire:
        await daemon(handlers, url=wire.url, calls_url=database.url, lease_ttl=10)
        wire.lose_answers = 0.05
        jobs = [await enqueue(connection, "many") for _ in range(3)]
        await aeventually(lambda: has_ended(connection, *jobs), 40)
        assert wire.cuts > 5
    for job in jobs:
        assert len(await calls(connection, job)) == len(set(await calls(connection, job))) == 40
        rows = await connection.fetch("select result from howdah.steps where job_id = $1 order by name::int", job)
        assert (await end_of(connection, job))["result"] == [row[0] for row in rows]


async def test_a_row_that_somebody_holds_delays_its_own_jobs_step_only(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, database: Database
) -> None:
    await make_calls(connection)
    handlers = CALLS + """
@handler("one")
async def one(job: Job) -> Any:
    await call(job, "begun")
    while not Path("go").exists(): await asyncio.sleep(0.01)
    return await job.step("one", int)

@handler("other")
async def other(job: Job) -> Any:
    return await job.step("one", int)
"""  # fmt: skip
    worker = await daemon(handlers, calls_url=database.url)
    held = await enqueue(connection, "one")
    await aeventually(lambda: calls(connection, held))
    async with connection.transaction():
        await connection.execute("select from howdah.jobs where id = $1 for update", held)
        (worker.folder / "go").touch()
        beside = await connect()
        for _ in range(3):
            assert (await end_of(beside, await enqueue(beside, "other"), timeout=5))["result"] == 0
    assert (await end_of(connection, held))["result"] == 0
