"""Killed with -9 at every point of a job's way: nothing is lost, nothing is there twice, and nobody is punished for it."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.gate import CLAIM, END, GIVING_BACK, Gate
from support.holding_proxy import Hold, holding
from support.jobs import add_worker, claim, claim_suspect, enqueue, enqueue_many, write_start

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 1

#: A session that the server ends with its client, and one that goes on to its end because the server does not notice.
UNDONE, DONE = "undone", "done"
LONG = pytest.mark.long


def at(point: str, fault: str, promise: str, *more: pytest.MarkDecorator) -> Any:
    """A point at which a worker is killed."""
    return pytest.param(point, marks=[pytest.mark.fault("Process", fault, promise), *more], id=point)


@pytest.mark.parametrize(
    "point",
    [
        at(UNDONE, "killed inside its claim, before the commit", "the jobs stay ready and run elsewhere at once"),
        at(
            DONE,
            "killed inside its claim, which the server then commits",
            "the jobs run elsewhere, no attempt counted",
            LONG,
        ),
        at("answered", "killed right after its claim's commit", "the jobs run elsewhere, no attempt counted"),
    ],
)
async def test_jobs_whose_worker_dies_in_their_claim_run_elsewhere_uncounted(
    point: str, daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with holding(database.url) as wire:
        victim, survivor = await two(daemon, wire.url)
        gate = Gate(connection)
        hold = wire.hold_answer("howdah.claim_ready(", b"needle") if point == "answered" else None
        if hold is None:
            await gate.shut(*CLAIM)
        jobs = await enqueue_many(
            connection, *({"kind": kind, "payload": {"needle": 1}} for kind in ("innocent", "effect") * 10)
        )
        await (gate.reached() if hold is None else hold.reached())
        victim.kill()
        killed = time.monotonic()
        if hold is None:
            await (gate.end_waiting() if point == UNDONE else gate.open())
        survivor.signal(signal.SIGCONT)
        await aeventually(lambda: is_empty(connection), 20)
    figures.faults += 1
    figures.recovered(time.monotonic() - killed)

    ids = [row["id"] for row in jobs]
    assert len(await checker.starts(*ids)) == len(ids)
    assert await standings(connection) == [("completed", 1, 0)]
    assert rescued_by(survivor) == (0 if point == UNDONE else len(ids))
    await checker.check(figures=figures)


@pytest.mark.parametrize(
    "point",
    [
        at("returned", "killed when the handler has returned, before the ack", "runs again, its writes are there once"),
        at(UNDONE, "killed inside its ack, before the commit", "runs again, its writes are there once"),
        at(DONE, "killed inside its ack, which the server then commits", "ended once; a transaction runs again"),
        at("answered", "killed right after its ack's commit", "ended once, and does not run again"),
    ],
)
async def test_a_job_whose_worker_dies_around_its_ack_ends_once(
    point: str, daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with holding(database.url) as wire:
        victim, survivor = await two(daemon, wire.url)
        gate, holds = Gate(connection), list[Hold]()
        match point:
            case "returned":
                holds = [wire.hold_question(words) for words in ("howdah.ack_completed(", "COMMIT")]
            case "answered":
                holds = [wire.hold_answer(words) for words in ("howdah.ack_completed(", "COMMIT")]
            case _:
                await gate.shut(*END)
        jobs = [await enqueue(connection, kind) for kind in ("innocent", "effect")]
        if holds:
            await asyncio.gather(*(hold.reached() for hold in holds))
        else:
            await gate.reached(2)
        victim.kill()
        killed = time.monotonic()
        if not holds:
            await (gate.end_waiting() if point == UNDONE else gate.open())
        survivor.signal(signal.SIGCONT)
        await aeventually(lambda: is_empty(connection), 20)
        # Whatever there was to take back, was.
        await aeventually(lambda: are_alone(connection, survivor), 20)
    figures.faults += 1
    figures.recovered(time.monotonic() - killed)

    # The commit of a transaction is the worker's to say: it goes with him, whatever the server notices.
    again = {"returned": 2, UNDONE: 2, DONE: 1, "answered": 0}[point]
    assert len(await checker.starts(*jobs)) == 2 + again
    assert await standings(connection) == [("completed", 1, 0)]
    assert rescued_by(survivor) == again
    await checker.check(figures=figures)


DRAINED = (
    JOURNAL
    + """
@handler("work")
async def work(job: Job) -> None:
    if job.payload:
        await quick_journal(job, "start")
        while not Path("../go").exists():
            await asyncio.sleep(0.02)
        await quick_journal(job, "end")
"""
)


@pytest.mark.parametrize(
    "point",
    [
        at(
            "waits",
            "killed in a drain, while running jobs are waited for",
            "those run again uncounted, the rest at once",
        ),
        at("releases", "killed in a drain, while jobs in hand are given back", "all run elsewhere, no attempt counted"),
    ],
)
async def test_a_worker_killed_in_its_drain_loses_and_punishes_nothing(
    point: str, daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    victim = await daemon(DRAINED, queues="default:3", lease_ttl=TTL, drain_timeout=60)
    await enqueue_many(connection, *[{"kind": "work"}] * 30)  # a kind that has shown to be short is claimed ahead
    await aeventually(lambda: is_empty(connection))
    rows = await enqueue_many(connection, *[{"kind": "work", "payload": {"n": n}} for n in range(25)])
    ids = [row["id"] for row in rows]
    await aeventually(lambda: has_started(checker, ids, 3))
    await aeventually(lambda: claimed(connection, more_than=5))
    gate = Gate(connection)
    if point == "releases":
        await gate.shut(*GIVING_BACK)
    victim.terminate()
    if point == "releases":
        await gate.reached()
    else:
        await aeventually(lambda: claimed(connection, exactly=3))
    victim.kill()
    killed = time.monotonic()
    if point == "releases":
        await gate.end_waiting()
    held = await claimed(connection)
    (victim.folder.parent / "go").touch()
    survivor = await daemon(DRAINED, queues="default:3", lease_ttl=TTL)
    await aeventually(lambda: is_empty(connection), 20)
    figures.faults += 1
    figures.recovered(time.monotonic() - killed)

    assert await standings(connection) == [("completed", 1, 0)]
    assert rescued_by(survivor) == held
    assert len(await checker.starts(*ids)) == 25 + 3
    await checker.check(figures=figures)


@pytest.mark.parametrize(
    "point",
    [
        at(UNDONE, "the rescuer is killed inside its rescue, before the commit", "the next one rescues, each crash counts once"),
        at(DONE, "the rescuer is killed inside its rescue, which commits", "the jobs run elsewhere, each crash counts once", LONG),
        at("answered", "the rescuer is killed right after its rescue's commit", "the jobs run elsewhere, each crash counts once"),
    ],
)  # fmt: skip
async def test_jobs_whose_rescuer_dies_are_run_by_the_next_one_and_each_crash_counts_once(
    point: str, daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with holding(database.url) as wire:
        rescuer = await daemon(JOURNAL, url=wire.url, lease_ttl=TTL)
        await sent_to_rest(rescuer)
        gate = Gate(connection)
        hold = wire.hold_answer("howdah.rescue(", b"gone:1") if point == "answered" else None
        if hold is None:
            await gate.shut(*GIVING_BACK)
        # A worker that died: it ran a suspect, and had others in hand.
        suspect = await enqueue(connection, "innocent")
        await connection.execute("update howdah.jobs set suspect = true where id = $1", suspect)
        await enqueue_many(connection, *[{"kind": "innocent"}] * 5)
        gone = await add_worker(connection, name="gone:1", ttl=TTL, silent_for=60)
        held = await claim_suspect(connection, gone, kinds=["innocent"])
        assert held is not None
        await write_start(connection, held)
        await connection.execute(
            "insert into public.journal (job_id, lease, attempt, worker, event) values ($1, $2, 1, 'gone:1', 'start')",
            held.id, held.lease,
        )  # fmt: skip
        assert len(await claim(connection, gone, kinds=["innocent"])) == 5

        await (gate.reached() if hold is None else hold.reached())
        rescuer.kill()
        killed = time.monotonic()
        if hold is None:
            await (gate.end_waiting() if point == UNDONE else gate.open())
        survivor = await daemon(JOURNAL, lease_ttl=TTL)
        await aeventually(lambda: is_empty(connection), 20)
        await aeventually(lambda: are_alone(connection, survivor), 20)
    figures.faults += 1
    figures.recovered(time.monotonic() - killed)

    assert (await checker.history_of(suspect))["crashes"] == 1
    assert await standings(connection) == [("completed", 1, 0), ("completed", 1, 1)]
    assert rescued_by(survivor) == (6 if point == UNDONE else 0)
    assert len(await checker.starts(suspect)) == 2
    await checker.check(figures=figures)


# -- words of these tests


async def two(daemon: StartDaemon, url: str) -> tuple[Daemon, Daemon]:
    """Start a worker on a wire, to be killed, and one that takes no job until it is told to."""
    victim, survivor = await asyncio.gather(daemon(JOURNAL, url=url, lease_ttl=TTL), daemon(JOURNAL, lease_ttl=TTL))
    await sent_to_rest(survivor)
    return victim, survivor


async def sent_to_rest(worker: Daemon) -> None:
    """Have a worker claim no more; it goes on to live, and to rescue."""
    worker.signal(signal.SIGTSTP)
    await aeventually(lambda: worker.log_events("claims no more"))


async def standings(connection: asyncpg.Connection) -> list[tuple[str, int, int]]:
    """How all jobs ended: state, attempt, crashes, each once."""
    rows = await connection.fetch("select distinct state, attempt, crashes from howdah.job_history order by 1, 2, 3")
    return [tuple(row) for row in rows]


def rescued_by(worker: Daemon) -> int:
    return sum(line["jobs"] for line in worker.log_events("rescued"))


async def are_alone(connection: asyncpg.Connection, worker: Daemon) -> bool:
    rows = await connection.fetch("select id from howdah.workers")
    return [row["id"] for row in rows] == [worker.worker]


async def has_started(checker: Checker, jobs: list[int], count: int) -> bool:
    return len(await checker.starts(*jobs)) >= count


async def claimed(connection: asyncpg.Connection, *, more_than: int = -1, exactly: int | None = None) -> int | None:
    count: int = await connection.fetchval("select count(*) from howdah.jobs where lease is not null")
    return count if count > more_than and exactly in {None, count} else None
