"""transaction=True: what a handler writes and its job's completion are one commit, or nothing happened."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many, status
from support.proxy import proxied

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

HANDLERS = """
WRITE = "insert into public.effects (job) values ($1)"

@handler("effect", transaction=True, max_attempts=1)
async def effect(job: Job, connection: asyncpg.Connection) -> Any:
    await connection.execute(WRITE, job.id)
    match job.payload.get("then"):
        case "raise": raise ValueError("after the write")
        case "snooze": return Snooze(3600)
        case "discard": return Discard("after the write")
        case "cancel": return Cancel("after the write")
        case "odd": return {"nul": "\\0", "surrogate": "\\ud800"}
        case "break": await connection.execute("select 1/0")
        case "late": await connection.execute("insert into public.late values (1), (1)")
        case "wait":
            await job.report({"half": True})
            while not Path("enough").exists(): await asyncio.sleep(0.01)
        case "hang": await asyncio.sleep(60)
    return {"written": job.id}
"""


#: What PostgreSQL says when a commit is done.
COMMITTED = b"COMMIT\0"


async def make_effects(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """create table public.effects (job bigint, at timestamptz not null default clock_timestamp());
        create table public.late (n int unique deferrable initially deferred)"""
    )


async def effects(connection: asyncpg.Connection) -> list[int]:
    return [row[0] for row in await connection.fetch("select job from public.effects order by job")]


async def test_a_handlers_writes_and_its_completion_commit_together(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_effects(connection)
    # The moment anybody sees the effect, the job is in history: seen from inside of one statement.
    await connection.execute(
        """create view public.halves as
        select e.job from public.effects e where not exists (select from howdah.job_history h where h.id = e.job)
        union all
        select h.id from howdah.job_history h where h.state = 'completed' and not exists (select from public.effects e where e.job = h.id)"""
    )
    await daemon(HANDLERS)
    rows = await enqueue_many(connection, *({"kind": "effect"} for _ in range(300)))

    async def all_have_ended() -> bool:
        assert not await connection.fetch("select * from public.halves")
        return await is_empty(connection)

    await aeventually(all_have_ended, interval=0)
    assert await effects(connection) == sorted(row["id"] for row in rows)
    ended = await status(connection, rows[0]["id"])
    assert ended["result"] == {"written": rows[0]["id"]}
    assert ended["created_at"] <= ended["claimed_at"] <= ended["started_at"] <= ended["finished_at"]


async def test_whatever_is_no_completion_undoes_the_handlers_writes(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_effects(connection)
    await daemon(HANDLERS)
    states = {}
    for then in ("raise", "discard", "cancel", "break", "late"):
        ended = await end_of(connection, await enqueue(connection, "effect", {"then": then}))
        states[then] = ended["state"]
    assert states == {"raise": "dead", "discard": "dead", "cancel": "cancelled", "break": "dead", "late": "dead"}
    snoozed = await enqueue(connection, "effect", {"then": "snooze"})
    await aeventually(lambda: is_scheduled(connection, snoozed))
    timed_out = await end_of(
        connection, await enqueue(connection, "effect", {"then": "hang"}, timeout=timedelta(seconds=0.2))
    )
    assert timed_out["errors"][0]["type"] == "HandlerTimeoutError"
    assert await effects(connection) == []
    # The pool's connections are as good as new.
    odd = await end_of(connection, await enqueue(connection, "effect", {"then": "odd"}))
    assert (odd["state"], odd["result"]["nul"]) == ("completed", "\ufffd")
    assert await effects(connection) == [odd["id"]]


async def test_an_attempt_that_has_lost_its_lease_leaves_no_effects(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_effects(connection)
    worker = await daemon(HANDLERS)
    job = await enqueue(connection, "effect", {"then": "wait"})
    await aeventually(lambda: has_reported(connection, job))
    await connection.execute("update howdah.jobs set lease = 4711 where id = $1", job)  # somebody else has it now
    (worker.folder / "enough").touch()
    await aeventually(lambda: worker.log_events("lost lease"))
    [line] = worker.log_events("lost lease")
    assert (line["level"], line["job"]) == ("warning", job)
    assert await effects(connection) == []
    assert await connection.fetchval("select lease from howdah.jobs where id = $1", job) == 4711
    assert await worker.metric("howdah_lost_leases_total") == 1


async def test_an_ack_of_an_attempt_that_has_lost_its_lease_changes_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("wait")
        async def wait(job: Job) -> str:
            await job.report({"half": True})
            while not Path("enough").exists(): await asyncio.sleep(0.01)
            return "late"
        """
    )
    job = await enqueue(connection, "wait")
    await aeventually(lambda: has_reported(connection, job))
    await connection.execute("update howdah.jobs set lease = 4711 where id = $1", job)
    before = await connection.fetchrow("select * from howdah.jobs where id = $1", job)
    (worker.folder / "enough").touch()
    await aeventually(lambda: worker.log_events("lost lease"))
    assert await connection.fetchrow("select * from howdah.jobs where id = $1", job) == before
    assert await worker.metric("howdah_lost_leases_total") == 1


async def has_reported(connection: asyncpg.Connection, job: int) -> bool:
    return (await status(connection, job))["progress"] is not None


async def is_scheduled(connection: asyncpg.Connection, job: int) -> bool:
    row = await status(connection, job)
    return row["state"] == "scheduled" and row["attempt"] == 0


async def test_a_commit_whose_answer_is_lost_counts_once_and_is_not_guessed_at(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    """The jobs may run at most once, so a wrong guess either way shows: as a dead job, or as one without its effect."""
    await make_effects(connection)
    async with proxied(database.url) as wire:
        worker = await daemon(HANDLERS, url=wire.url, lease_ttl=10)
        wire.lose_answers_with = COMMITTED
        jobs = [row["id"] for row in await enqueue_many(connection, *[{"kind": "effect"}] * 20)]
        for job in jobs:
            assert (await end_of(connection, job))["state"] == "completed"
        assert wire.cuts >= len(jobs)
        wire.lose_answers_with = None
        # It knows so itself: none of them is a lost lease, and the pool works on.
        assert worker.log_events("lost lease") == []
        last = await enqueue(connection, "effect")
        assert (await end_of(connection, last))["state"] == "completed"
    assert await effects(connection) == [*jobs, last]
