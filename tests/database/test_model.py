"""A job's life against a model of it: whatever two workers and their users do, in any order, the tables follow the model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.cluster import connect_to, new_database
from support.jobs import Ack, Held, ack, claim, claim_suspect, enqueued, fate

from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

HOUR = timedelta(hours=1)
WORKERS = ("one", "other")

workers = st.sampled_from(WORKERS)
which = st.integers(min_value=0, max_value=99)  # the so-many-th of those that come into question, counted round


@dataclass
class Model:
    """One job as it should be."""

    id: int
    key: str | None
    priority: int
    max_attempts: int
    later: bool
    attempt: int = 0
    crashes: int = 0
    suspect: bool = False
    lease: int | None = None
    worker: str | None = None
    started: bool = False
    cancel_asked: bool = False
    last_lease: int | None = None
    old_leases: list[int] = field(default_factory=list)
    end: str | None = None
    end_lease: int | None = None

    @property
    def state(self) -> str:
        if self.end is not None:
            return self.end
        if self.lease is not None:
            return "running"
        return ("retrying" if self.attempt else "scheduled") if self.later else "ready"

    def finish(self, state: str, lease: int | None) -> None:
        if self.lease is not None:
            self.old_leases.append(self.lease)
        self.end, self.end_lease, self.lease, self.worker = state, lease, None, None

    def give_back(self, *, counted: bool, later: bool, suspect: bool) -> None:
        assert self.lease is not None
        self.old_leases.append(self.lease)
        self.attempt -= 0 if counted else 1
        self.lease, self.worker, self.started, self.later, self.suspect = None, None, False, later, suspect


class Life(RuleBasedStateMachine):
    """The rules are what may happen; the invariant reads the tables after each of them."""

    runner: asyncio.Runner
    connection: asyncpg.Connection

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, Model] = {}
        self.run(
            self.connection.execute(
                """truncate howdah.jobs, howdah.job_history, howdah.signals, howdah.workers, howdah.queues restart identity"""
            )
        )
        self.worker_ids = {name: self.enter(name) for name in WORKERS}
        self.paused = False

    def run(self, call: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await call

        return self.runner.run(wait())

    def enter(self, name: str) -> int:
        return int(self.run(self.connection.fetchval(SQL["enter"], name, "0.1.0", 3600.0, ["default"], ["work"])))

    # -- which jobs

    def live(self) -> list[Model]:
        return [job for job in self.jobs.values() if job.end is None]

    def held(self) -> list[Model]:
        return [job for job in self.live() if job.lease is not None]

    def claimable(self, *, suspect: bool) -> list[Model]:
        found = [job for job in self.live() if job.lease is None and not job.later and job.suspect == suspect]
        return [] if self.paused else sorted(found, key=lambda job: (-job.priority, job.id))

    def holder(self, key: str | None) -> Model | None:
        return next((job for job in self.live() if key is not None and job.key == key), None)

    # -- users

    @initialize(keys=st.lists(st.sampled_from([None, "a", "b"]), min_size=3, max_size=8))
    def there_is_work(self, keys: list[str | None]) -> None:
        for key in keys:
            self.enqueue(key, "skip", 0, later=False, max_attempts=3)
        # Every other one has a dead worker behind it already.
        for job in list(self.jobs.values())[::2]:
            self.run(self.connection.execute("update howdah.jobs set suspect = true where id = $1", job.id))
            job.suspect = True

    @rule(
        key=st.sampled_from([None, "a", "b"]),
        on_conflict=st.sampled_from(["skip", "replace", "error"]),
        priority=st.sampled_from([0, 0, 5]),
        later=st.booleans(),
        max_attempts=st.integers(min_value=1, max_value=3),
        busy=st.booleans(),
    )
    def somebody_enqueues(
        self, *, key: str | None, on_conflict: str, priority: int, later: bool, max_attempts: int, busy: bool
    ) -> None:
        held = [job.key for job in self.held() if job.key is not None]
        key = held[0] if busy and held else key  # the key of a running job
        self.enqueue(key, on_conflict, priority, later=later, max_attempts=max_attempts)

    def enqueue(self, key: str | None, on_conflict: str, priority: int, *, later: bool, max_attempts: int) -> None:
        given: dict[str, Any] = {"priority": priority, "max_attempts": max_attempts, "on_conflict": on_conflict}
        given |= {"delay": HOUR} if later else {}
        given |= {"unique_key": key} if key else {}
        holder = self.holder(key)
        if holder is not None and on_conflict == "error":
            self.refused("JB005", enqueued(self.connection, "work", **given))
            return
        row = self.run(enqueued(self.connection, "work", **given))
        assert row["created"] == (holder is None)
        if holder is None:
            assert row["id"] not in self.jobs
            self.jobs[row["id"]] = Model(row["id"], key, priority, max_attempts, later)
            return
        assert row["id"] == holder.id
        if on_conflict == "replace" and holder.lease is None:
            holder.priority, holder.max_attempts, holder.later, holder.attempt = priority, max_attempts, later, 0

    @precondition(lambda self: self.jobs)
    @rule(which=which)
    def cancel(self, which: int) -> None:
        job = nth(self.held() if which % 2 and self.held() else self.jobs.values(), which // 2)
        said = self.run(self.connection.fetchval("select howdah.cancel($1, 'anna', 'enough')", job.id))
        if job.end is None and job.lease is None:
            job.finish("cancelled", job.last_lease)
        elif job.end is None:
            job.cancel_asked = True
        assert said == job.state

    @precondition(lambda self: any(job.cancel_asked for job in self.jobs.values()))
    @rule()
    def apply_signals(self) -> None:
        rows = self.run(self.connection.fetch(SQL["apply_signals"]))
        assert sorted(row["job_id"] for row in rows) == sorted(job.id for job in self.held() if job.cancel_asked)

    @precondition(lambda self: self.jobs)
    @rule(which=which)
    def retry(self, which: int) -> None:
        job = nth(self.jobs.values(), which)
        call = self.connection.fetchval("select howdah.retry($1)", job.id)
        if job.end is None:
            self.refused("JB007", call)
        elif self.holder(job.key) is not None:
            self.refused("JB005", call)
        else:
            new = self.run(call)
            assert new not in self.jobs
            self.jobs[new] = Model(new, job.key, job.priority, job.max_attempts, later=False)

    @rule(paused=st.sampled_from([False, False, False, True]))
    def pause_or_resume(self, *, paused: bool) -> None:
        self.run(self.connection.execute(f"select howdah.{'pause' if paused else 'resume'}('default')"))
        self.paused = paused

    # -- time

    @precondition(lambda self: any(job.later for job in self.live()))
    @rule(which=which)
    def the_time_comes(self, which: int) -> None:
        job = nth([job for job in self.live() if job.later], which)
        self.run(
            self.connection.execute(
                "update howdah.jobs set due_at = now() - interval '1 s' where id = $1 and due_at is not null", job.id
            )
        )
        row = self.run(self.connection.fetchrow(SQL["make_ready"], 100, None))
        assert row["promoted"] == 1
        job.later = False

    @precondition(lambda self: self.live())
    @rule()
    def nothing_is_due(self) -> None:
        assert self.run(self.connection.fetchrow(SQL["make_ready"], 100, None))["promoted"] == 0

    # -- workers

    @precondition(lambda self: len(self.held()) < 4)
    @rule(worker=workers, count=st.integers(min_value=1, max_value=3))
    def claim(self, worker: str, count: int) -> None:
        expected = self.claimable(suspect=False)[:count]
        taken = self.run(claim(self.connection, self.worker_ids[worker], count=count))
        assert {held.id for held in taken} == {job.id for job in expected}
        for held in taken:
            self.note_claim(held, worker)

    @precondition(lambda self: any(job.suspect for job in self.live()))
    @rule(worker=workers)
    def claim_suspect(self, worker: str) -> None:
        expected = self.claimable(suspect=True)[:1]
        held = self.run(claim_suspect(self.connection, self.worker_ids[worker]))
        assert [job.id for job in expected] == ([held.id] if held else [])
        if held:
            self.note_claim(held, worker)

    def note_claim(self, held: Held, worker: str) -> None:
        job = self.jobs[held.id]
        job.attempt += 1
        assert held.row["attempt"] == job.attempt
        job.lease, job.worker, job.started = held.lease, worker, False

    @precondition(lambda self: self.held())
    @rule(which=which)
    def start(self, which: int) -> None:
        job = nth(self.held(), which)
        rows = self.run(self.connection.fetch(SQL["start"], [job.id], [job.lease], [0.0]))
        assert [row["id"] for row in rows] == [job.id]
        job.started = True

    @precondition(lambda self: self.held())
    @rule(
        which=which,
        outcome=st.sampled_from(["completed", "dead", "cancelled"]),
        ran=st.booleans(),
    )
    def ack_the_end(self, *, which: int, outcome: str, ran: bool) -> None:
        self.ack(nth(self.held(), which), outcome, later=False, ran=ran)

    @precondition(lambda self: self.held())
    @rule(
        which=which,
        outcome=st.sampled_from(["retried", "snoozed", "released"]),
        later=st.sampled_from([False, False, True]),
        ran=st.booleans(),
    )
    def ack_and_send_back(self, *, which: int, outcome: str, later: bool, ran: bool) -> None:
        unwanted = [job for job in self.held() if job.cancel_asked]
        self.ack(nth(unwanted or self.held(), which), outcome, later=later, ran=ran)

    def ack(self, job: Model, outcome: str, *, later: bool, ran: bool) -> None:
        if outcome == "retried" and job.attempt >= job.max_attempts:
            outcome = "dead"  # the worker's own decision
        assert job.lease is not None
        held = Held(job.id, job.lease, None)
        said = Ack(
            held,
            outcome,
            error={"type": "ValueError", "message": "went wrong"} if outcome in {"dead", "retried"} else None,
            delay=3600.0 if later else 0.0,
            run=0.0 if ran and outcome != "released" else None,
        )
        assert self.run(ack(self.connection, said)) == {job.id}
        if outcome in {"completed", "dead", "cancelled"}:
            job.finish(outcome, held.lease)
        elif job.cancel_asked:
            job.finish("cancelled", held.lease)
        else:
            job.give_back(
                counted=outcome == "retried",
                later=later and outcome != "released",
                suspect=outcome == "released" and job.suspect,
            )
            job.last_lease = held.lease
        # Its reply was lost, and it is sent again.
        assert self.run(ack(self.connection, said)) == set()
        assert self.run(fate(self.connection, held, sent_before=True)) == "done"

    @precondition(lambda self: self.held())
    @rule(which=which)
    def complete(self, which: int) -> None:
        job = nth(self.held(), which)
        for _ in range(2):  # a repeat is told the same
            said = self.run(
                self.connection.fetchval("select howdah.complete($1, $2)", job.id, job.lease or job.end_lease)
            )
            assert said == "completed"
            if job.end is None:
                job.finish("completed", job.lease)

    @precondition(lambda self: any(job.old_leases for job in self.jobs.values()))
    @rule(
        which=which,
        lease=which,
        outcome=st.sampled_from(
            ["completed", "dead", "cancelled", "retried", "snoozed", "released", "rescued", "crashed"]
        ),
    )
    def late_words(self, which: int, lease: int, outcome: str) -> None:
        """Nothing that is said under an old lease changes anything."""
        # Those that somebody else holds by now are the ones to fear for.
        known = [job for job in self.jobs.values() if job.old_leases]
        job = nth([job for job in known if job.lease is not None] or known, which)
        stale = nth(job.old_leases, lease)
        held = Held(job.id, stale, None)
        assert self.run(ack(self.connection, Ack(held, outcome, delay=0.0))) == set()
        written = job.last_lease if job.end is None else job.end_lease
        assert self.run(fate(self.connection, held)) == ("done" if written == stale else "lost")
        assert self.run(self.connection.fetch(SQL["start"], [job.id], [stale], [0.0])) == []
        assert self.run(self.connection.fetch(SQL["report"], [job.id], [stale], ['{"late": true}'])) == []
        if not (job.end == "completed" and job.end_lease == stale):
            self.refused("JB008", self.connection.fetchval("select howdah.complete($1, $2)", job.id, stale))

    @precondition(lambda self: self.held())
    @rule(worker=workers)
    def a_worker_dies_and_another_comes(self, worker: str) -> None:
        gone = self.worker_ids[worker]
        self.run(
            self.connection.execute("update howdah.workers set beat_at = 'epoch', ttl = '1 ms' where id = $1", gone)
        )
        [row] = self.run(self.connection.fetch("select * from howdah.rescue()"))
        rescued = buried = 0
        for job in self.held():
            if job.worker != worker:
                continue
            if job.started and (job.max_attempts == 1 or (job.suspect and job.crashes + 1 >= 2)):
                job.crashes += 1
                job.finish("dead", None)
                buried += 1
            elif job.cancel_asked:
                job.finish("cancelled", job.lease)
                rescued += 1
            else:
                job.crashes += int(job.suspect and job.started)
                job.give_back(counted=False, later=False, suspect=True)
                rescued += 1
        assert (row["worker"], row["rescued"], row["buried"]) == (gone, rescued, buried)
        self.worker_ids[worker] = self.enter(worker)

    # -- what must be so after every step

    @invariant()
    def the_tables_follow_the_model(self) -> None:
        names = {worker: name for name, worker in self.worker_ids.items()}
        rows = self.run(self.connection.fetch("select * from howdah.jobs order by id"))
        told = [
            {
                "id": row["id"],
                "state": row["state"],
                "attempt": row["attempt"],
                "max_attempts": row["max_attempts"],
                "crashes": row["crashes"],
                "suspect": row["suspect"],
                "lease": row["lease"],
                "worker": names.get(row["leased_by"]),
                "started": row["started_at"] is not None,
                "last_lease": row["last_lease"],
            }
            for row in rows
        ]
        assert told == [
            {name: getattr(job, name) for name in LIVE_FACTS} for job in sorted(self.live(), key=lambda job: job.id)
        ]
        rows = self.run(self.connection.fetch("select * from howdah.job_history order by id"))
        assert [(row["id"], row["state"], row["attempt"], row["crashes"], row["lease"]) for row in rows] == [
            (job.id, job.end, job.attempt, job.crashes, job.end_lease)
            for job in sorted(self.jobs.values(), key=lambda job: job.id)
            if job.end is not None
        ]
        assert all(row["started_at"] or not row["crashes"] or row["state"] != "dead" for row in rows)
        assert self.run(self.connection.fetchval("select count(*) from howdah.job_status")) == len(self.jobs)

    def refused(self, sqlstate: str, call: Awaitable[Any]) -> None:
        try:
            said = self.run(call)
        except asyncpg.PostgresError as error:
            assert error.sqlstate == sqlstate, error  # noqa: PT017
        else:
            raise AssertionError(f"{sqlstate} was expected, it said {said!r}")


LIVE_FACTS = (
    "id",
    "state",
    "attempt",
    "max_attempts",
    "crashes",
    "suspect",
    "lease",
    "worker",
    "started",
    "last_lease",
)


def nth(jobs: Iterable[Any], number: int) -> Any:
    found = list(jobs)
    return found[number % len(found)]


def test_whatever_happens_to_jobs_the_tables_follow_the_model() -> None:
    with asyncio.Runner() as runner:
        making = new_database()
        database = runner.run(making.__aenter__())
        try:
            Life.runner, Life.connection = runner, runner.run(connect_to(database))
            run_state_machine_as_test(
                Life,
                settings=settings(
                    max_examples=60,
                    stateful_step_count=50,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            Life.connection.terminate()
        finally:
            runner.run(making.__aexit__(None, None, None))
