"""What a handler enqueues through its job exists exactly if its own outcome does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.facts import count_ends, end_of, has_ended, is_empty
from support.jobs import enqueue, live, status
from support.proxy import proxied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

    Connect = Callable[[], Awaitable[asyncpg.Connection]]
    from support.figures import Figures

HANDLERS = """
class Note(BaseModel):
    of: int

@handler("parent", max_attempts=2, backoff=lambda attempt: 3600, timeout=2)
async def parent(job: Job) -> Any:
    await job.enqueue("child", {"of": job.id, "n": 1}, queue="elsewhere", priority=3, delay=timedelta(hours=1), subject="s:1")
    await job.enqueue("child", Note(of=job.id), queue="elsewhere", headers={"h": 1}, timeout=30, delay=0.5)
    match job.payload["then"]:
        case "snooze": return Snooze(3600)
        case "discard": return Discard("hopeless")
        case "cancel": return Cancel("not wanted")
        case "raise": raise ValueError("half way")
        case "hang": await asyncio.sleep(60)
        case "wait":
            Path("begun").touch()
            while not Path("enough").exists(): await asyncio.sleep(0.01)
    return "well"

@handler("transaction", transaction=True, max_attempts=1)
async def in_transaction(job: Job, connection: asyncpg.Connection) -> Any:
    await connection.execute("insert into public.effects values ($1)", job.id)
    await job.enqueue(job.payload.get("kind", "child"), {"of": job.id}, queue=job.payload.get("queue", "elsewhere"))
    if job.payload.get("then") == "snooze": return Snooze(3600)
    if job.payload.get("then") == "raise": raise ValueError("half way")

@handler("thread")
def in_thread(job: Job) -> None:
    job.enqueue("child", {"of": job.id}, queue="elsewhere")

@handler("process", runs_in="process")
def in_process(job: Job) -> None:
    job.enqueue("child", {"of": job.id}, queue="elsewhere")

@handler("bad", max_attempts=2, backoff=lambda attempt: 3600)
async def bad(job: Job) -> None:
    await job.enqueue("child", {"of": job.id}, queue="elsewhere")
    await job.enqueue("child", {"of": job.id}, **job.payload)

@on_error
def note(job, error):
    Path("told").write_text(f"{job.id} {type(error).__name__} {error}")
"""


async def children(connection: asyncpg.Connection, job: int) -> list[asyncpg.Record]:
    return await connection.fetch(
        "select * from howdah.job_status where kind = 'child' and payload ->> 'of' = $1 order by id", str(job)
    )


async def state_is(connection: asyncpg.Connection, job: int, state: str) -> bool:
    return (await status(connection, job))["state"] == state


async def test_jobs_that_a_handler_enqueues_come_with_what_it_returned_and_with_nothing_else(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS, drain_timeout=0.1)
    expected = {
        "return": ("completed", 2),
        "snooze": ("scheduled", 2),
        "discard": ("dead", 2),
        "cancel": ("cancelled", 2),
        "raise": ("retrying", 0),
        "hang": ("retrying", 0),
    }
    jobs = {then: await enqueue(connection, "parent", {"then": then}) for then in expected}
    for then, (state, count) in expected.items():
        await aeventually(lambda then=then, state=state: state_is(connection, jobs[then], state))
        assert len(await children(connection, jobs[then])) == count, then
    one, two = await children(connection, jobs["return"])
    assert (one["queue"], one["priority"], one["subject"], one["payload"]["n"]) == ("elsewhere", 3, "s:1", 1)
    assert 3590 < (one["due_at"] - one["created_at"]).total_seconds() <= 3600
    assert (two["payload"], two["headers"]) == ({"of": jobs["return"]}, {"h": 1})
    assert (await live(connection, two["id"]))["timeout"].total_seconds() == 30  # type: ignore[index]
    for kind in ("thread", "process"):
        job = await enqueue(connection, kind)
        assert (await end_of(connection, job))["state"] == "completed"
        assert len(await children(connection, job)) == 1

    waiting = await enqueue(connection, "parent", {"then": "wait"})
    await aeventually(lambda: (worker.folder / "begun").exists())
    await connection.execute("select howdah.cancel($1, 'tester')", waiting)
    await end_of(connection, waiting)
    assert await children(connection, waiting) == []
    (worker.folder / "begun").unlink()
    released = await enqueue(connection, "parent", {"then": "wait"})
    await aeventually(lambda: (worker.folder / "begun").exists())
    assert await worker.stop() == 0
    assert await state_is(connection, released, "ready")
    assert await children(connection, released) == []


async def test_a_lost_lease_enqueues_nothing(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    worker = await daemon(HANDLERS)
    job = await enqueue(connection, "parent", {"then": "wait"})
    await aeventually(lambda: (worker.folder / "begun").exists())
    await connection.execute("update howdah.jobs set lease = 4711 where id = $1", job)
    (worker.folder / "enough").touch()
    await aeventually(lambda: worker.log_events("lost lease"))
    assert await children(connection, job) == []


async def test_in_a_transaction_the_jobs_commit_with_the_handlers_writes(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table public.effects (job bigint)")
    await daemon(HANDLERS)
    done = await enqueue(connection, "transaction")
    snoozed = await enqueue(connection, "transaction", {"then": "snooze"})
    failed = await enqueue(connection, "transaction", {"then": "raise"})
    refused = await enqueue(connection, "transaction", {"kind": ""})
    assert (await end_of(connection, done))["state"] == "completed"
    await aeventually(lambda: state_is(connection, snoozed, "scheduled"))
    assert (await end_of(connection, failed))["state"] == "dead"
    ended = await end_of(connection, refused)
    assert (ended["state"], ended["errors"][0]["type"]) == ("dead", "RefusedError")
    assert "kind" in ended["error"]
    counts = {job: len(await children(connection, job)) for job in (done, snoozed, failed, refused)}
    assert counts == {done: 1, snoozed: 1, failed: 0, refused: 0}
    assert await connection.fetch("select job from public.effects") == [(done,)]


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"priority": 99}, "RefusedError", "priority"),
        ({"queeu": "mail"}, "RefusedError", "there is no argument queeu"),
        ({"run_at": "whenever"}, "RefusedError", "run_at"),
    ],
)
async def test_jobs_that_are_refused_fail_the_attempt_with_the_reason_and_none_is_enqueued(
    options: dict[str, Any], error: str, problem: str, daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(HANDLERS)
    job = await enqueue(connection, "bad", options)
    await aeventually(lambda: state_is(connection, job, "retrying"))
    row = await status(connection, job)
    assert (row["errors"][0]["type"], row["attempt"]) == (error, 1)
    assert problem in row["error"]
    assert await children(connection, job) == []
    told = await aeventually(lambda: (worker.folder / "told").read_text())
    assert told.startswith(f"{job} {error} ")
    assert problem in told
    finished = await worker.metrics()
    assert finished['howdah_jobs_finished_total{kind="bad",outcome="retried",queue="default"}'] == 1
    assert finished['howdah_jobs_finished_total{kind="bad",outcome="completed",queue="default"}'] == 0


async def test_an_outcome_whose_row_somebody_holds_waits_and_its_jobs_come_once(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect
) -> None:
    worker = await daemon(HANDLERS)
    job = await enqueue(connection, "parent", {"then": "wait"})
    await aeventually(lambda: (worker.folder / "begun").exists())
    beside = await connect()
    async with connection.transaction():
        await connection.execute("select from howdah.jobs where id = $1 for update", job)
        (worker.folder / "enough").touch()
        # Others are acked meanwhile.
        for _ in range(3):
            other = await enqueue(beside, "thread")
            await end_of(beside, other)
        assert await children(beside, job) == []
    await end_of(connection, job)
    assert len(await children(connection, job)) == 2


async def test_a_unique_key_that_an_open_transaction_holds_holds_up_no_other_ack(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect
) -> None:
    await daemon(
        HANDLERS
        + """
@handler("keyed")
async def keyed(job: Job) -> None:
    await job.enqueue("child", {"of": job.id}, queue="elsewhere", unique_key="the one")
"""
    )
    beside = await connect()
    async with connection.transaction():
        await enqueue(connection, "child", queue="elsewhere", unique_key="the one")
        job = await enqueue(beside, "keyed")
        await aeventually(lambda: is_blocked(beside))
        for kind in ("thread", "thread", "thread"):
            await end_of(beside, await enqueue(beside, kind), timeout=5)
        assert await state_is(beside, job, "running")
    assert (await end_of(connection, job))["state"] == "completed"
    assert await children(connection, job) == []  # there is one with this key already


async def is_blocked(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            "select exists (select from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0 and query like '%ack_with%')"
        )
    )


#: A chain of links, each of which dies once with its worker: before it asks for the next, after that, or about when it is acked.
LINKS = """
import random

def once(job, point):
    mark = Path(f"../{point} {job.payload['n']}")
    if mark.exists(): return False
    mark.touch()
    return True

def die(): os.kill(os.getpid(), signal.SIGKILL)

@handler("link")
async def link(job: Job) -> Any:
    n = job.payload["n"]
    if n % 4 == 1 and once(job, "before"): die()
    if n < job.payload["links"]:
        await job.enqueue("link", {"n": n + 1, "links": job.payload["links"]})
    if n % 4 == 2 and once(job, "after"): die()
    if n % 4 == 3 and once(job, "acked"):
        asyncio.get_running_loop().call_later(random.random() * 0.003, die)
    return n
"""


@pytest.mark.faults
@pytest.mark.fault(
    "Process", "killed before, at and after the enqueue of the next job of a chain", "each link is there exactly once"
)
async def test_a_chain_whose_workers_are_killed_at_each_point_has_each_link_exactly_once(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    links = 8

    async def keep_alive() -> None:
        while True:
            worker = await daemon(LINKS, ready=False, lease_ttl=1)
            await aeventually(lambda worker=worker: worker.process.poll() is not None, timeout=120)

    keepers = [asyncio.create_task(keep_alive()) for _ in range(2)]
    try:
        await enqueue(connection, "link", {"n": 1, "links": links})
        await aeventually(lambda: has_link(connection, links), timeout=90)
        await aeventually(lambda: is_empty(connection), timeout=20)
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
    rows = await connection.fetch("select payload -> 'n' as n, state, attempt from howdah.job_history order by id")
    assert [row["n"] for row in rows] == list(range(1, links + 1))
    assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
    figures.faults += links * 3 // 4
    await count_ends(connection, figures)


async def has_link(connection: asyncpg.Connection, n: int) -> bool:
    return bool(
        await connection.fetchval("select exists (select from howdah.job_history where payload -> 'n' = $1)", n)
    )


@pytest.mark.faults
async def test_a_chain_over_a_wire_that_loses_answers_has_each_link_exactly_once(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    async with proxied(database.url) as wire:
        await daemon(
            """
            @handler("link", max_attempts=20)
            async def link(job: Job) -> Any:
                if job.payload["n"] < 20:
                    await job.enqueue("link", {"chain": job.payload["chain"], "n": job.payload["n"] + 1})
            """,
            url=wire.url,
            lease_ttl=10,
        )
        wire.lose_answers = 0.08
        for chain in range(5):
            await enqueue(connection, "link", {"chain": chain, "n": 1})
        await aeventually(lambda: is_empty(connection), 60)
        assert wire.cuts > 5
    rows = await connection.fetch(
        "select payload -> 'chain', payload -> 'n', count(*) from howdah.job_history group by 1, 2"
    )
    assert len(rows) == 100
    assert {row[2] for row in rows} == {1}
    assert await has_ended(connection)
