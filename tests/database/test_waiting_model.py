"""Waiting against a model of it: whatever workers and users do, in any order, who waits and for what follows the model."""

from __future__ import annotations

import asyncio
from collections import Counter
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
from support.jobs import Ack, Held, ack, add_worker, claim, claim_suspect, enqueue_many, enqueued, write_start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

which = st.integers(min_value=0, max_value=99)  # the so-many-th of those that come into question, counted round
keys = st.sampled_from([None, None, None, "a", "b"])
subjects = st.sampled_from([None, None, "x", "y"])
several = st.lists(which, max_size=3)
TABLES = "jobs, job_history, signals, workers, dependencies, batches, batch_ends, waiters"


@dataclass
class Model:
    """One job as it should be. `waits_for`: job → [whether it needs it, how that one ended]; `open`: a batch is before it."""

    id: int
    key: str | None = None
    subject: str | None = None
    batch: int | None = None
    later: bool = False
    max_attempts: int = 3
    waits_for: dict[int, list[Any]] = field(default_factory=dict)
    open: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    told: dict[str, int] | None = None
    attempt: int = 0
    crashes: int = 0
    suspect: bool = False
    started: bool = False
    asked: bool = False
    held: Held | None = None
    worker: int | None = None
    end: str | None = None
    reason: str | None = None

    @property
    def state(self) -> str:
        if self.end is not None:
            return self.end
        if self.held is not None:
            return "running"
        if self.waits_for or self.open:
            return "waiting"
        return ("retrying" if self.attempt else "scheduled") if self.later else "ready"


class Waiting(RuleBasedStateMachine):
    """The rules are what may happen; the invariant reads the tables after each of them."""

    runner: asyncio.Runner
    connection: asyncpg.Connection

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, Model] = {}
        self.marked = False  # a lock that was rolled back has left its mark on a job, which may be taken for held
        tables = ", ".join(f"howdah.{table}" for table in TABLES.split(", "))
        self.run(self.connection.execute(f"truncate {tables} restart identity"))
        self.worker = self.run(add_worker(self.connection, ttl=3600))

    def run(self, call: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await call

        return self.runner.run(wait())

    # -- which jobs

    def live(self) -> list[Model]:
        return [job for job in self.jobs.values() if job.end is None]

    def held(self) -> list[Model]:
        return [job for job in self.live() if job.held is not None]

    def members(self, batch: int) -> list[Model]:
        return [job for job in self.live() if job.batch == batch]

    def open_batches(self) -> list[Model]:
        return [job for job in self.live() if job.open]

    def leads_to(self, start: int, batch: int) -> bool:
        """Whether a job waits for a batch, by whatever way."""
        seen, todo = set(), [start]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            todo += self.jobs[one].waits_for
            todo += [job.id for job in self.members(one) if job.waits_for]
        return batch in seen

    # -- what must follow from what

    def note_ended(self, ended: list[Model], *, brief: bool) -> None:
        waiting, groups = set(), set()
        for job in ended:
            for other in self.live():
                if other.waits_for.get(job.id, [None, True])[1] is None:
                    other.waits_for[job.id][1] = job.end
                    waiting.add(other.id)
            job.open = False
        for job in ended:
            if job.batch is not None and self.jobs[job.batch].open:
                self.jobs[job.batch].counts[str(job.end)] += 1
                groups.add(job.batch)
        if brief:
            self.resolve(waiting)
            for batch in groups:
                self.end_batch(self.jobs[batch])

    def resolve(self, waiting: Iterable[int]) -> None:
        cancelled = []
        for job in [self.jobs[job_id] for job_id in sorted(waiting)]:
            job.waits_for = {
                other: wait
                for other, wait in job.waits_for.items()
                if wait[1] is None or (wait[1] != "completed" and wait[0])
            }
            lost = sorted(other for other, wait in job.waits_for.items() if wait[1])
            if lost:
                job.end = "cancelled"
                job.reason = f"it depends on job {lost[0]}, which is {job.waits_for[lost[0]][1]}"
                job.waits_for = {}
                cancelled.append(job)
        if cancelled:
            self.note_ended(cancelled, brief=False)

    def end_batch(self, job: Model) -> None:
        if job.open and not self.members(job.id):
            job.open = False
            job.told = {state: job.counts[state] for state in ("completed", "dead", "cancelled")}

    # -- users

    @initialize(sizes=st.lists(st.integers(min_value=0, max_value=3), min_size=1, max_size=3))
    def there_are_batches(self, sizes: list[int]) -> None:
        for size in sizes:
            batch = self.create(None)
            for _ in range(size):
                self.enqueue(batch=batch)

    @rule(key=keys)
    def somebody_opens_a_batch(self, key: str | None) -> None:
        self.create(key)

    def create(self, key: str | None) -> int | None:
        call = self.connection.fetchval("select howdah.create_batch('work', unique_key => $1)", key)
        if key is not None and any(job.key == key for job in self.live()):
            self.refused("JB005", call)
            return None
        batch = int(self.run(call))
        self.jobs[batch] = Model(batch, key=key, open=True)
        return batch

    @rule(
        key=keys,
        subject=subjects,
        member_of=st.one_of(st.none(), which),
        depends=several,
        run=st.booleans(),
        later=st.sampled_from([False, False, True]),
        once=st.booleans(),
        replace=st.booleans(),
        many=st.booleans(),
    )
    def somebody_enqueues(self, member_of: int | None, depends: list[int], **given: Any) -> None:
        batches = [job.id for job in self.jobs.values() if job.open or job.told]
        batch = nth(batches, member_of) if batches and member_of is not None else None
        self.enqueue(batch=batch, depends=[nth(self.jobs, number) for number in depends] if self.jobs else [], **given)

    def enqueue(
        self,
        *,
        batch: int | None = None,
        depends: Iterable[int] = (),
        key: str | None = None,
        subject: str | None = None,
        run: bool = False,
        later: bool = False,
        once: bool = False,
        replace: bool = False,
        many: bool = False,
    ) -> None:
        on_conflict, attempts = "replace" if replace else "skip", 1 if once else 3
        given: dict[str, Any] = {"max_attempts": attempts, "on_conflict": on_conflict}
        given |= {"on_failed_dependency": "run"} if run else {}
        named = {"batch": batch, "depends_on": list(depends) or None, "unique_key": key, "subject": subject}
        given |= {name: value for name, value in named.items() if value is not None}
        if many:
            call = self.first(
                enqueue_many(self.connection, {"kind": "work", **given} | ({"delay": "1 h"} if later else {}))
            )
        else:
            call = enqueued(self.connection, "work", **given, **({"delay": timedelta(hours=1)} if later else {}))
        holder = next((job for job in self.live() if key is not None and job.key == key), None)
        if batch is not None and not self.jobs[batch].open:
            self.refused("JB007", call)
        elif holder is None and batch is not None and any(self.leads_to(other, batch) for other in depends):
            self.refused("JB002", call)
        elif holder is not None:
            row = self.run(call)
            assert (row["id"], row["created"]) == (holder.id, False)
            if replace and holder.held is None:
                holder.later, holder.max_attempts, holder.attempt = later, attempts, 0
        else:
            row = self.run(call)
            assert row["created"]
            waits = {other: [not run, self.jobs[other].end] for other in depends}
            waits = {o: w for o, w in waits.items() if w[1] is None or (w[0] and w[1] != "completed")}
            self.jobs[row["id"]] = Model(row["id"], key, subject, batch, later, attempts, waits)

    async def first(self, rows: Awaitable[list[Any]]) -> Any:
        return (await rows)[0]

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def cancel(self, number: int) -> None:
        job = nth(self.jobs.values(), number)
        said = self.run(self.connection.fetchval("select howdah.cancel($1)", job.id))
        self.users_cancel([job] if job.end is None else [])
        assert said == job.state

    @rule(subject=st.sampled_from(["x", "y"]))
    def cancel_subject(self, subject: str) -> None:
        jobs = [job for job in self.live() if job.subject == subject]
        assert self.run(self.connection.fetchval("select howdah.cancel_subject($1)", subject)) == len(jobs)
        self.users_cancel(jobs)

    def users_cancel(self, jobs: list[Model]) -> None:
        ended = [job for job in jobs if job.held is None]
        for job in jobs:
            job.asked = job.held is not None
        for job in ended:
            job.end, job.waits_for = "cancelled", {}
        self.note_ended(ended, brief=False)

    @precondition(lambda self: any(job.end for job in self.jobs.values()))
    @rule(number=which)
    def retry(self, number: int) -> None:
        job = nth([job for job in self.jobs.values() if job.end], number)
        call = self.connection.fetchval("select howdah.retry($1)", job.id)
        if job.key is not None and any(other.key == job.key for other in self.live()):
            self.refused("JB005", call)
        else:
            new = self.run(call)
            self.jobs[new] = Model(new, job.key, job.subject, max_attempts=job.max_attempts, told=job.told)

    # -- the engine

    @rule()
    def settle(self) -> None:
        for _ in range(2):
            seen, next_in = self.run(self.connection.fetchrow("select seen, next_in from howdah.settle()"))
            assert next_in is None or self.marked
        assert seen == 0
        while known := [job.id for job in self.live() if any(wait[1] for wait in job.waits_for.values())]:
            self.resolve(known)
        for batch in self.open_batches():
            self.end_batch(batch)

    @precondition(lambda self: any(job.state in {"scheduled", "retrying"} for job in self.live()))
    @rule(number=which)
    def the_time_comes(self, number: int) -> None:
        job = nth([job for job in self.live() if job.state in {"scheduled", "retrying"}], number)
        self.run(self.connection.execute("update howdah.jobs set due_at = 'epoch' where id = $1", job.id))
        assert self.run(self.connection.fetchval("select promoted from howdah.promote(100)")) == 1
        job.later = False

    @precondition(lambda self: len(self.held()) < 4)
    @rule(count=st.integers(min_value=1, max_value=3))
    def claim(self, count: int) -> None:
        ready = sorted(job.id for job in self.live() if job.state == "ready" and not job.suspect)[:count]
        taken = self.run(claim(self.connection, self.worker, count=count))
        assert sorted(held.id for held in taken) == ready
        for held in taken:
            self.note_claim(held)
        suspect = self.run(claim_suspect(self.connection, self.worker))
        if suspect:
            self.note_claim(suspect)

    def note_claim(self, held: Held) -> None:
        job = self.jobs[held.id]
        assert job.state == "ready"
        assert held.row["batch"] == job.batch
        job.held, job.started, job.attempt = held, False, job.attempt + 1
        if job.max_attempts == 1 or job.suspect:
            self.run(write_start(self.connection, held))
            job.started = True

    @precondition(lambda self: self.held())
    @rule(
        numbers=st.lists(which, min_size=1, max_size=3),
        outcome=st.sampled_from(["completed", "completed", "dead", "cancelled", "retried", "snoozed", "released"]),
        later=st.booleans(),
    )
    def ack(self, numbers: list[int], outcome: str, *, later: bool) -> None:
        jobs = list({job.id: job for job in (nth(self.held(), number) for number in numbers)}.values())
        said = [Ack(job.held, outcome, delay=3600.0 if later else 0.0, run=0.0) for job in jobs if job.held]
        assert self.run(ack(self.connection, *said)) == {job.id for job in jobs}
        self.note_acks(jobs, outcome, later=later and outcome != "released")

    def note_acks(self, jobs: list[Model], outcome: str, *, later: bool = False) -> None:
        ended = []
        for job in jobs:
            end = "dead" if outcome == "retried" and job.attempt >= job.max_attempts else outcome
            if outcome in {"retried", "snoozed", "released", "rescued"} and job.asked:
                end = "cancelled"
            if outcome == "rescued" and job.started and (job.max_attempts == 1 or (job.suspect and job.crashes)):
                end = "dead"
            job.crashes += int(outcome == "rescued" and job.suspect and job.started)
            job.held = None
            if end in {"completed", "dead", "cancelled"}:
                job.end = end
                ended.append(job)
            else:
                job.attempt -= outcome != "retried"
                job.suspect = outcome == "rescued" or (outcome == "released" and job.suspect)
                job.later = later
        self.note_ended(ended, brief=True)

    @precondition(lambda self: self.held())
    @rule(number=which)
    def complete(self, number: int) -> None:
        job = nth(self.held(), number)
        assert job.held is not None
        self.run(self.connection.execute("select howdah.complete($1, $2)", job.id, job.held.lease))
        self.note_acks([job], "completed")

    @precondition(lambda self: self.held())
    @rule(number=which, more=st.integers(min_value=1, max_value=3))
    def ack_with_more(self, number: int, more: int) -> None:
        job = nth([job for job in self.held() if job.batch] or self.held(), number)
        assert job.held is not None
        call = self.connection.fetchval(
            "select howdah.ack_with($1, $2, 'completed', null, null, null, 0, 0, null, true, $3)",
            job.id,
            job.held.lease,
            [{"kind": "work", "batch": job.batch}] * more,
        )
        if job.batch is not None and not self.jobs[job.batch].open:  # it was cancelled meanwhile
            self.refused("JB007", call)
            self.marked = True
            return
        before = self.run(self.connection.fetchval("select coalesce(max(id), 0) from howdah.jobs"))
        assert self.run(call)
        for row in self.run(self.connection.fetch("select id from howdah.jobs where id > $1", before)):
            self.jobs[row["id"]] = Model(row["id"], batch=job.batch)
        self.note_acks([job], "completed")

    @rule()
    def apply_signals(self) -> None:
        rows = self.run(self.connection.fetch("select job_id from howdah.apply_signals()"))
        assert sorted(row[0] for row in rows) == sorted(job.id for job in self.held() if job.asked)

    @precondition(lambda self: self.held())
    @rule()
    def the_worker_dies_and_another_comes(self) -> None:
        self.run(self.connection.execute("update howdah.workers set beat_at = 'epoch' where id = $1", self.worker))
        self.run(self.connection.fetch("select * from howdah.rescue()"))
        self.note_acks(self.held(), "rescued")
        self.worker = self.run(add_worker(self.connection, ttl=3600))

    # -- what must be so after every step

    @invariant()
    def the_tables_follow_the_model(self) -> None:
        rows = self.run(
            self.connection.fetch("select id, state, cancel_reason, headers -> 'batch' as told from howdah.job_status")
        )
        assert {row["id"]: (row["state"], row["cancel_reason"], row["told"]) for row in rows} == {
            job.id: (job.state, job.reason, job.told) for job in self.jobs.values()
        }
        assert len(rows) == len(self.jobs)
        rows = self.run(self.connection.fetch("select job_id, depends_on, required, outcome from howdah.dependencies"))
        assert sorted(map(tuple, rows), key=str) == sorted(
            ((job.id, other, *wait) for job in self.live() for other, wait in job.waits_for.items()), key=str
        )
        rows = self.run(
            self.connection.fetch(
                """select b.id, coalesce(sum(completed), 0)::int as completed, coalesce(sum(dead), 0)::int as dead,
                coalesce(sum(cancelled), 0)::int as cancelled from howdah.batches b full join howdah.batch_ends e on e.batch = b.id group by b.id"""
            )
        )
        assert {row["id"]: (row["completed"], row["dead"], row["cancelled"]) for row in rows} == {
            job.id: tuple(job.counts[state] for state in ("completed", "dead", "cancelled"))
            for job in self.open_batches()
        }

    def refused(self, sqlstate: str, call: Awaitable[Any]) -> None:
        try:
            said = self.run(call)
        except asyncpg.PostgresError as error:
            assert error.sqlstate == sqlstate, error  # noqa: PT017
        else:
            raise AssertionError(f"{sqlstate} was expected, it said {said!r}")


def nth(jobs: Iterable[Any], number: int) -> Any:
    found = list(jobs)
    return found[number % len(found)]


def test_whatever_happens_who_waits_and_for_what_follows_the_model() -> None:
    with asyncio.Runner() as runner:
        making = new_database()
        database = runner.run(making.__aenter__())
        try:
            Waiting.runner, Waiting.connection = runner, runner.run(connect_to(database))
            run_state_machine_as_test(
                Waiting,
                settings=settings(
                    max_examples=25,
                    stateful_step_count=40,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            Waiting.connection.terminate()
        finally:
            runner.run(making.__aexit__(None, None, None))
