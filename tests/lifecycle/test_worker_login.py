"""A daemon whose login is a member of howdah_worker and of nothing else does all that a daemon does."""

from __future__ import annotations

import json
import signal
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.daemon import howdah, write_handlers
from support.eventually import aeventually
from support.facts import end_of, is_empty, state_of
from support.jobs import enqueue, enqueue_coalesced, enqueue_many, status
from support.logins import login, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon

HANDLERS = """
class Letter(BaseModel):
    to: str
    token: str = ""

@handler("work")
async def work(job: Job) -> dict[str, Any]:
    return {"echo": job.payload}

@handler("fails", max_attempts=2, backoff=lambda attempt: 0.01)
async def fails(job: Job) -> None: raise ValueError("always")

@handler("dies", max_attempts=1)
async def dies(job: Job) -> None: raise ValueError("once")

@handler("letter", secret=("token",))
async def letter(job: Job[Letter]) -> None: ...

@handler("effect", transaction=True)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into public.effects (job) values ($1)", job.id)
    await connection.execute("select howdah.enqueue('work', subject => 'child')")

@handler("steps")
async def steps(job: Job) -> Any:
    async def once() -> int: return 41
    await job.enqueue("work", subject="child")
    return await job.step("one", once)

@handler("hold", timeout=60)
async def hold(job: Job) -> None:
    await job.report({"half": True})
    while not Path("../enough").exists(): await asyncio.sleep(0.01)
"""


@pytest.fixture
async def worker(database: Database) -> AsyncIterator[Database]:
    """The database, with the address of a login that is only a member of howdah_worker."""
    async with login(database, "howdah_worker") as worker:
        yield worker


@pytest.fixture
async def app(connection: asyncpg.Connection, worker: Database) -> asyncpg.Connection:
    """A connection to a database where the application has a table that its worker may write."""
    await connection.execute(
        f"create table public.effects (job bigint); grant select, insert on public.effects to {name_of(worker)}"
    )
    return connection


async def test_handlers_may_have_a_login_of_their_own_that_only_enqueues_and_their_commits_are_one(
    daemon: StartDaemon, app: asyncpg.Connection, worker: Database, database: Database
) -> None:
    handlers = (
        HANDLERS
        + """
@handler("who", transaction=True)
async def who(job: Job, connection: asyncpg.Connection) -> str:
    await connection.execute("insert into public.effects (job) values ($1)", job.id)
    await job.enqueue("work", subject="child")
    return await connection.fetchval("select session_user::text")

@handler("peeks")
async def peeks(job: Job) -> None:
    async with job.connection() as connection:
        await connection.execute("select from howdah.jobs")
"""
    )
    async with login(database, "howdah_producer") as producer:
        await app.execute(f"grant insert on public.effects to {name_of(producer)}")
        running = await daemon(handlers, url=worker.url, pool_database_url=producer.url)
        who = await enqueue(app, "who")
        job = await end_of(app, who)
        assert (job["state"], job["result"]) == ("completed", name_of(producer))
        assert await app.fetchval("select array_agg(job) from public.effects") == [who]
        peeks = await end_of(app, await enqueue(app, "peeks", max_attempts=1))
        assert (peeks["state"], "permission denied" in peeks["error"]) == ("dead", True)
        await aeventually(lambda: is_empty(app))
        assert await app.fetchval("select state from howdah.job_history where subject = 'child'") == "completed"
        running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == 0


def has_complained(daemon: Daemon) -> list[str]:
    return [line for line in daemon.output().splitlines() if "permission denied" in line or "row-level" in line]


async def test_a_mere_worker_lives_through_all_that_can_come_of_a_job(
    daemon: StartDaemon, app: asyncpg.Connection, worker: Database
) -> None:
    await app.execute("select howdah.pause('later')")
    missing = await app.fetchval(
        """select inhrelid::regclass::text from pg_inherits where inhparent = 'howdah.job_history'::regclass
        order by inhrelid::regclass::text desc limit 1"""
    )
    await app.execute(
        f"""drop table {missing}; create table howdah.job_history_20000101 (like howdah.job_history including all);
        alter table howdah.job_history_20000101 owner to howdah_owner;
        alter table howdah.job_history attach partition howdah.job_history_20000101 for values from ('2000-01-01') to ('2000-01-02')"""
    )
    running = await daemon(HANDLERS, url=worker.url, queues="default:20,later:5")

    # Done, in a handler's transaction, retried, dead, scheduled, coalesced, refused, with a child.
    jobs = [row["id"] for row in await enqueue_many(app, *({"kind": "work"} for _ in range(200)))]
    effect, steps, fails, dies = [await enqueue(app, kind) for kind in ("effect", "steps", "fails", "dies")]
    later = await enqueue(app, delay=timedelta(milliseconds=200))
    for n in range(5):
        await enqueue_coalesced(app, payload={"n": n}, delay=timedelta(milliseconds=100))
    assert (await end_of(app, fails))["attempt"] == 2
    assert (await end_of(app, dies))["state"] == "dead"
    for job in (effect, steps, later, *jobs):
        assert (await end_of(app, job))["state"] == "completed"
    assert (await status(app, steps))["result"] == 41
    assert await app.fetchval("select array_agg(job) from public.effects") == [effect]
    await aeventually(lambda: is_empty(app))
    assert await app.fetchval("select count(*) from howdah.job_history where subject = 'child'") == 2
    assert await app.fetchval("select payload from howdah.job_history where payload ? 'n'") == {"n": 4}

    # Jobs that wait: for jobs, one of which is lost, and for a batch; and somebody who waits for them.
    async with app.transaction():
        batch = await app.fetchval("select howdah.create_batch('work')")
        members = [await enqueue(app, kind, batch=batch) for kind in ("work", "dies")]
        heir = await enqueue(app, depends_on=[batch])
        orphan = await enqueue(app, depends_on=[members[1]])
        await app.execute("select howdah.watch($1, 'me')", heir)
    assert (await end_of(app, heir))["state"] == "completed"
    assert (await end_of(app, orphan))["state"] == "cancelled"
    assert (await end_of(app, batch))["headers"] == {"batch": {"completed": 1, "dead": 1, "cancelled": 0}}
    await aeventually(lambda: nobody_waits(app))

    # Registered, with what is secret.
    assert await app.fetchval("select secret from howdah.kinds where name = 'letter'") == ["token"]
    letter = await enqueue(app, "letter", {"to": "Ada", "token": "t0p"})
    assert (await end_of(app, letter))["payload"] == {"to": "Ada"}  # what is secret goes with the job

    # A paused queue waits; what is running reports, and is told of a cancel.
    waiting = await enqueue(app, queue="later")
    held = await enqueue(app, "hold")
    await aeventually(lambda: has_progress(app, held))
    await app.execute("select howdah.cancel($1, 'Ada', 'changed her mind')", held)
    assert (await end_of(app, held))["cancelled_by"] == "Ada"
    assert await state_of(app, waiting) == "ready"
    await app.execute("select howdah.resume('later')")
    await end_of(app, waiting)

    # History's days are made and dropped.
    days = (
        "select array_agg(inhrelid::regclass::text) from pg_inherits where inhparent = 'howdah.job_history'::regclass"
    )
    await aeventually(lambda: holds(app, missing, days))
    await aeventually(lambda: holds(app, "howdah.job_history_20000101", days, present=False))

    status_, body = await running.get("/stats")
    assert status_ == 200, body
    assert (await running.get("/health/queue"))[0] == 200
    assert await running.stop() == 0
    assert await app.fetchval("select count(*) from howdah.workers") == 0
    assert has_complained(running) == []


@pytest.mark.faults
async def test_a_mere_worker_takes_back_the_jobs_of_one_that_was_killed(
    daemon: StartDaemon, app: asyncpg.Connection, worker: Database, tmp_path: Path
) -> None:
    first = await daemon(HANDLERS, url=worker.url, lease_ttl=1)
    jobs = [row["id"] for row in await enqueue_many(app, *({"kind": "hold"} for _ in range(3)))]
    for job in jobs:
        await aeventually(lambda job=job: has_progress(app, job))
    cancelled = jobs[0]
    first.kill()
    await app.execute("select howdah.cancel($1)", cancelled)
    (tmp_path / "enough").touch()
    second = await daemon(HANDLERS, url=worker.url, lease_ttl=1)
    assert [(await end_of(app, job, 15))["state"] for job in jobs] == ["cancelled", "completed", "completed"]
    assert has_complained(second) == []
    second.signal(signal.SIGQUIT)
    assert await second.wait() == 0


async def test_a_mere_worker_registers_and_runs_until_empty(
    tmp_path: Path, app: asyncpg.Connection, worker: Database
) -> None:
    write_handlers(tmp_path, HANDLERS)
    url = {"HOWDAH_DATABASE_URL": worker.url}
    registered = howdah("register", folder=tmp_path, **url)
    assert registered.returncode == 0, registered.stderr
    await enqueue_many(app, *({"kind": "work"} for _ in range(50)), {"kind": "effect"})
    done = howdah("run", "--until-empty", folder=tmp_path, **url)
    assert json.loads(done.stdout) == {"processed": 52, "dead": 0}, done.stderr


async def test_a_login_without_the_role_is_told_which_one_it_needs(tmp_path: Path, database: Database) -> None:
    write_handlers(tmp_path, HANDLERS)
    async with login(database) as stranger:
        refused = howdah("run", folder=tmp_path, HOWDAH_DATABASE_URL=stranger.url)
    assert refused.returncode == 78
    assert "grant howdah_worker" in refused.stderr.splitlines()[-1]


async def nobody_waits(connection: asyncpg.Connection) -> bool:
    return not await connection.fetchval(
        """select exists (select from howdah.waiters) or exists (select from howdah.dependencies) or exists (select from howdah.batches)
        or exists (select from howdah.batch_ends)"""
    )


async def has_progress(connection: asyncpg.Connection, job: int) -> bool:
    return (await status(connection, job))["progress"] == {"half": True}


async def holds(connection: asyncpg.Connection, name: str, query: str, *, present: bool = True) -> bool:
    return (name in await connection.fetchval(query)) == present
