"""Frozen beyond the ttl while limits hold, or while no history is kept: nothing runs too often, nothing ends twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 1

#: While there is a file "held" in its worker's folder, a job runs on; it looks at no clock, for it must outlive the freezing.
HELD = (
    JOURNAL
    + """
@handler("held")
async def held(job: Job) -> None:
    await quick_journal(job, "start")
    await until_let_go()
    await quick_journal(job, "end")

@handler("held_effect", transaction=True)
async def held_effect(job: Job, connection: asyncpg.Connection) -> None:
    await quick_journal(job, "start")
    await connection.execute("insert into public.effect values ($1, $2)", job.id, job.attempt)
    await until_let_go()
    await quick_journal(job, "end")

async def until_let_go():
    while Path("held").exists():
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            pass
"""
)


@pytest.mark.fault(
    "Process", "frozen (SIGSTOP) beyond its ttl with limited jobs",
    "limits hold at every instant; its late acks are refused and free no place",
)  # fmt: skip
async def test_a_frozen_worker_s_places_are_freed_by_its_rescue_alone_and_no_limit_is_exceeded(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('two', concurrency => 2)")
    frozen = await held_daemon(daemon)
    first = await enqueue_many(
        connection, *[{"kind": "held", "limits": ["two"]}] * 2, {"kind": "held", "fifo_key": "line"}
    )
    ids = [row["id"] for row in first]
    await aeventually(lambda: has_started(checker, ids, 3))
    frozen.freeze()
    frozen_at = time.monotonic()
    other = await held_daemon(daemon)
    rest = [{"kind": "held", "limits": ["two"]}] * 8 + [{"kind": "held", "fifo_key": "line"}] * 4
    await enqueue_many(connection, *rest)

    # The places are taken anew when the ttl is over: the suspect that runs alone and another job, or two others.
    await aeventually(lambda: start_elsewhere(connection, frozen, 2), 15)
    figures.recovered(time.monotonic() - frozen_at)
    await aeventually(lambda: taken(connection, "two", 2))
    before = await holds(connection)
    frozen.thaw()
    (frozen.folder / "held").unlink()
    await aeventually(lambda: len(frozen.log_events("lost lease")) == 3)
    assert await holds(connection) == before
    figures.faults += 1

    await aeventually(lambda: frozen.log_events("claims again"))
    (other.folder / "held").unlink()
    await aeventually(lambda: is_empty(connection), 20)
    assert not await holds(connection)
    assert await connection.fetchval("select bool_and(state = 'completed' and attempt = 1) from howdah.job_history")
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Process", "frozen (SIGSTOP) beyond its ttl with no history kept", "nothing ends twice, writes are there once"
)
async def test_with_no_history_kept_a_frozen_worker_ends_nothing_twice(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    frozen = await held_daemon(daemon, history_days=0)
    jobs = [await enqueue(connection, kind) for kind in ("held", "held_effect", "held", "held_effect")]
    await aeventually(lambda: has_started(checker, jobs, 4))
    frozen.freeze()
    frozen_at = time.monotonic()
    other = await held_daemon(daemon, history_days=0)
    (other.folder / "held").unlink()
    await aeventually(lambda: is_empty(connection), 15)
    figures.recovered(time.monotonic() - frozen_at)
    frozen.thaw()
    (frozen.folder / "held").unlink()
    await aeventually(lambda: len(frozen.log_events("lost lease")) == 4)
    figures.faults += 1

    assert await ends(connection) == dict.fromkeys(jobs, 1)
    effects = await connection.fetch("select job_id, count(*) from public.effect group by job_id order by job_id")
    assert [tuple(row) for row in effects] == [(jobs[1], 1), (jobs[3], 1)]
    assert len(await checker.starts(*jobs)) == 8
    # It works on, as a new worker.
    assert await other.stop() == 0
    again = await enqueue(connection, "held_effect")
    await aeventually(lambda: is_empty(connection))
    assert (await ends(connection))[again] == 1
    await checker.check(drained=False)
    figures.jobs += len(jobs) + 1


@pytest.mark.fault("Process", "a drain with no history kept", "what runs ends once, the rest runs elsewhere uncounted")
async def test_with_no_history_kept_a_drain_ends_what_runs_and_gives_back_the_rest(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    settings = {"queues": "default:40", "concurrency": 4, "history_days": 0}
    leaving = await held_daemon(daemon, **settings)
    rows = await enqueue_many(connection, *[{"kind": kind} for kind in ("held", "held_effect") * 20])
    jobs = [row["id"] for row in rows]
    await aeventually(lambda: has_started(checker, jobs, 4))
    leaving.terminate()
    await aeventually(lambda: in_hand(connection, 4))
    given_back = await connection.fetch("select attempt, crashes, suspect from howdah.jobs where lease is null")
    assert [tuple(row) for row in given_back] == [(0, 0, False)] * 36
    (leaving.folder / "held").unlink()
    assert await leaving.wait() == 0
    assert await connection.fetchval("select count(*) from howdah.jobs") == 36
    figures.faults += 1

    left = time.monotonic()
    next_one = await held_daemon(daemon, **settings)
    (next_one.folder / "held").unlink()
    await aeventually(lambda: is_empty(connection), 15)
    figures.recovered(time.monotonic() - left)
    assert await ends(connection) == dict.fromkeys(jobs, 1)
    assert len(await checker.starts(*jobs)) == 40
    assert await connection.fetchval("select count(*) = 20 and count(distinct job_id) = 20 from public.effect")
    assert not await connection.fetchval("select exists (select from howdah.job_history)")
    await checker.check(drained=False)
    figures.jobs += len(jobs)


async def held_daemon(daemon: StartDaemon, **settings: object) -> Daemon:
    """Start a worker that holds its jobs."""
    worker = await daemon(HELD, ready=False, lease_ttl=TTL, **settings)
    (worker.folder / "held").touch()
    return await worker.ready()


async def has_started(checker: Checker, jobs: list[int], count: int) -> bool:
    return len(await checker.starts(*jobs)) >= count


async def start_elsewhere(connection: asyncpg.Connection, worker: Daemon, count: int) -> bool:
    """Tell whether so many jobs have started in other workers than this one."""
    found: int = await connection.fetchval(
        "select count(*) from public.journal where event = 'start' and worker <> $1", str(worker.process.pid)
    )
    return found >= count


async def taken(connection: asyncpg.Connection, key: str, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) = $2 from howdah.holds where key = $1", key, count))


async def holds(connection: asyncpg.Connection) -> list[tuple[str, int]]:
    rows = await connection.fetch("select key, job_id from howdah.holds order by 1, 2")
    return [tuple(row) for row in rows]


async def ends(connection: asyncpg.Connection) -> dict[int, int]:
    """How often each job has ended: with no history kept, it is gone."""
    rows = await connection.fetch("select job_id, count(*) as times from public.audit where event = 'gone' group by 1")
    return {row["job_id"]: row["times"] for row in rows}


async def in_hand(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) = $1 from howdah.jobs where lease is not null", count))
