"""Everything that waits, with many at it at once: acks, cancellations that stay open, joiners, late commits, rescues and settles."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
from support.checker import Checker
from support.jobs import Ack, Held, ack, add_worker, claim, claim_suspect, completed, fate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import Connect

log = logging.getLogger("figures")

#: How long they are all at it; minutes where somebody wants to know it exactly.
SECONDS = float(os.environ.get("HOWDAH_TEST_RACE_SECONDS", "5"))
SEED = int(os.environ.get("HOWDAH_TEST_RACE_SEED", str(random.randrange(1 << 30))))  # noqa: S311 - it only makes disorder
#: What may befall a user: the batch is over, a key is held, somebody else was faster. Two users may even lock each other out.
REFUSED = ("JB", "40001", "40P01")
ISOLATIONS = ("read_committed", "read_committed", "repeatable_read")
#: The longest that a transaction stays open, in seconds.
OPEN = 0.08
#: No statement of the engine may take so long, whatever users hold; their transactions stay open for as long at a time.
HOLD, BOUND = 4.0, 2.0
WORK_AHEAD = 150


class Race:
    """One database, and everybody who is at it."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.random = random.Random(SEED)  # noqa: S311 - as above
        self.over = False
        self.slowest: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    async def engine(self, what: str, call: Awaitable[Any]) -> Any:
        """Await a statement of the engine: it never fails and never waits."""
        began = time.monotonic()
        answer = await call
        self.slowest[what] = max(self.slowest.get(what, 0.0), time.monotonic() - began)
        self.counts[what] = self.counts.get(what, 0) + 1
        return answer

    async def pause(self, longest: float = OPEN) -> None:
        await asyncio.sleep(self.random.random() ** 3 * longest)

    async def user(self, act: Callable[[asyncpg.Connection], Awaitable[None]], *, longest: float = OPEN) -> None:
        """Do something again and again, in transactions that stay open a while and may be rolled back."""
        connection = await self.connect()
        while not self.over:
            transaction = connection.transaction(isolation=self.random.choice(ISOLATIONS))
            await transaction.start()
            try:
                for _ in range(self.random.randint(1, 3)):
                    await act(connection)
                    await self.pause(longest)
                if self.random.random() < 0.15:
                    await transaction.rollback()
                else:
                    await transaction.commit()
            except asyncpg.PostgresError as error:
                if not str(error.sqlstate).startswith(REFUSED):
                    raise
                self.counts[f"user {error.sqlstate}"] = self.counts.get(f"user {error.sqlstate}", 0) + 1
                with suppress(asyncpg.InterfaceError):
                    await transaction.rollback()
            await self.pause()

    async def some(self, connection: asyncpg.Connection, table: str, where: str = "true") -> list[int]:
        """Up to three ids, rather the latest ones."""
        rows = await connection.fetch(f"select id from {table} where {where} order by id desc limit 40")
        return [row[0] for row in self.random.sample(rows, min(len(rows), self.random.randint(1, 3)))]

    # -- users

    async def creates(self, connection: asyncpg.Connection) -> None:
        while not self.over and await connection.fetchval("select count(*) from howdah.jobs") > WORK_AHEAD:
            if connection.is_in_transaction():
                return
        batch, given = None, self.random.choice(["skip", "replace"])
        if self.random.random() < 0.4:
            batch = await connection.fetchval("select howdah.create_batch('work', subject => 'batch')")
        elif self.random.random() < 0.8:
            batch = next(iter(await self.some(connection, "howdah.batches")), None)
        depends = []
        if self.random.random() < 0.5:
            depends = await self.some(connection, "howdah.jobs" if self.random.random() < 0.8 else "howdah.job_history")
        jobs = [
            {"kind": "work", "batch": batch, "subject": f"s{self.random.randrange(30)}", "on_conflict": given}
            | ({"depends_on": depends, "on_failed_dependency": self.random.choice(["cancel", "run"])} if depends else {})
            | ({"unique_key": f"k{self.random.randrange(20)}"} if self.random.random() < 0.2 else {})
            | ({"max_attempts": 1} if self.random.random() < 0.2 else {})
            for _ in range(self.random.randint(1, 4))
        ]  # fmt: skip
        await connection.fetch("select * from howdah.enqueue_many($1)", jobs)

    async def cancels(self, connection: asyncpg.Connection) -> None:
        if self.random.random() < 0.2:
            await connection.execute("select howdah.cancel_subject($1, 'ada')", f"s{self.random.randrange(30)}")
        for job in (await self.some(connection, "howdah.jobs"))[:1]:
            await connection.execute("select howdah.cancel($1, 'ada')", job)

    async def holds(self, connection: asyncpg.Connection) -> None:
        """Lock what waits, as nobody should."""
        for job in (await self.some(connection, "howdah.jobs", "due_at = 'infinity'"))[:1]:
            await connection.execute("select from howdah.jobs where id = $1 for update", job)

    async def watches(self, connection: asyncpg.Connection) -> None:
        for job in await self.some(connection, "howdah.jobs"):
            await connection.execute("select howdah.watch($1, 'me', -100)", job)

    # -- the engine

    async def works(self, number: int) -> None:
        connection = await self.connect()
        held: list[Ack] = []
        while not self.over:
            worker = await add_worker(connection, name=f"w{number}", ttl=3600)
            for _ in range(self.random.randint(5, 60)):
                if self.over:
                    break
                jobs = await self.engine("claim", claim(connection, worker, count=self.random.randint(1, 8)))
                if suspect := await self.engine("claim", claim_suspect(connection, worker)):
                    jobs.append(suspect)
                await self.note_starts(connection, jobs)
                await self.pause(0.01)
                held += [await self.outcome(connection, job) for job in jobs]
                held = await self.acks(connection, [attempt for attempt in held if attempt.outcome])
            if not self.over:  # it dies, whatever it holds
                held = []
                await connection.execute("update howdah.workers set beat_at = 'epoch' where id = $1", worker)
                await self.engine("rescue", connection.fetch("select * from howdah.rescue()"))

    async def note_starts(self, connection: asyncpg.Connection, jobs: list[Held]) -> None:
        await connection.executemany(
            "insert into journal (job_id, lease, attempt, worker, event) values ($1, $2, $3, 'w', 'start')",
            [(job.id, job.lease, job.row["attempt"]) for job in jobs],
        )
        await connection.execute(
            "update howdah.jobs set started_at = greatest(claimed_at, clock_timestamp()) where id = any ($1) and lease = any ($2) and (suspect or max_attempts = 1)",
            [job.id for job in jobs],
            [job.lease for job in jobs],
        )

    async def outcome(self, connection: asyncpg.Connection, job: Held) -> Ack:  # noqa: PLR0911 - a die with seven sides
        """Decide what comes of a job; "": it is written already."""
        how = self.random.random()
        if how < 0.12:
            return Ack(job, "", None) if await self.completes(connection, job) else completed(job)
        if how < 0.24:
            more = [{"kind": "work", "batch": job.row["batch"]}] if job.row["batch"] and how < 0.2 else []
            more += [{"kind": "work", "unique_key": f"k{self.random.randrange(20)}"}]
            with suppress(asyncpg.PostgresError):  # its batch was cancelled
                if await self.engine(
                    "ack_with",
                    connection.fetchval(
                        "select howdah.ack_with($1, $2, 'completed', null, null, null, 0, 0, null, true, $3)",
                        job.id,
                        job.lease,
                        more,
                    ),
                ):
                    return Ack(job, "", None)
        if how < 0.34:
            return Ack(job, "dead", error={"type": "PayloadError", "message": "no"})
        if how < 0.4:
            return Ack(job, "cancelled", error={"by": "bob", "reason": "no"})
        if how < 0.5:
            return Ack(job, "retried", delay=0.0, error={"type": "ValueError", "message": "no"})
        if how < 0.55:
            return Ack(job, "snoozed", delay=0.0)
        return completed(job)

    async def completes(self, connection: asyncpg.Connection, job: Held) -> bool:
        """Complete in a transaction that stays open, as a handler's own."""
        try:
            async with connection.transaction(isolation=self.random.choice(ISOLATIONS)):
                if self.random.random() < 0.5:
                    await connection.fetchval("select count(*) from howdah.jobs")  # the snapshot is taken here
                    await self.pause(0.02)
                await connection.execute("select howdah.complete($1, $2)", job.id, job.lease)
                await self.pause()
        except asyncpg.PostgresError as error:
            if not str(error.sqlstate).startswith(("40001", "JB008")):
                raise
            return False
        return True

    async def acks(self, connection: asyncpg.Connection, attempts: list[Ack]) -> list[Ack]:
        """Write what came of attempts; gives those whose rows are busy."""
        if not attempts:
            return []
        written = await self.engine("ack", ack(connection, *attempts))
        left = [attempt for attempt in attempts if attempt.job.id not in written]
        return [attempt for attempt in left if await fate(connection, attempt.job) == "busy"]

    async def settles(self) -> None:
        connection = await self.connect()
        while not self.over:
            await self.engine("settle", connection.fetchrow("select * from howdah.settle(50)"))
            await self.engine("signals", connection.fetch("select * from howdah.apply_signals()"))
            await self.pause(0.05)

    # -- the end

    async def finish(self, connection: asyncpg.Connection) -> None:
        """One worker does what is left; nothing may be left that it cannot do."""
        await connection.execute("update howdah.workers set beat_at = 'epoch'")
        await connection.fetch("select * from howdah.rescue()")
        worker = await add_worker(connection, ttl=3600)
        await connection.fetch("select * from howdah.apply_signals()")
        while await connection.fetchval("select exists (select from howdah.jobs)"):
            jobs = await claim(connection, worker, count=1000)
            while suspect := await claim_suspect(connection, worker):
                jobs.append(suspect)
            await self.note_starts(connection, jobs)
            await self.acks(connection, list(map(completed, jobs)))
            seen = await connection.fetchval("select seen from howdah.settle()")
            if not jobs and not seen:
                left = await connection.fetch("select * from howdah.jobs")
                waits = await connection.fetch("select * from howdah.dependencies")
                raise AssertionError(f"nobody can end {left}, {waits} (seed {SEED})")
        # Whoever was last in the race may have ended the last job, and nobody looked since.
        await connection.fetch("select * from howdah.settle()")


async def test_whoever_waits_is_let_go_once_and_in_time_whatever_happens_at_the_same_moment(
    connect: Connect, connection: asyncpg.Connection
) -> None:
    checker = await Checker(connection).install()
    race = Race(connect)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(race.user(race.creates))
            for _ in range(2):
                group.create_task(race.user(race.cancels))
            group.create_task(race.user(race.holds, longest=HOLD))
            group.create_task(race.user(race.watches))
            for number in range(3):
                group.create_task(race.works(number))
            for _ in range(2):
                group.create_task(race.settles())
            await asyncio.sleep(SECONDS)
            race.over = True
        await race.finish(connection)
    except ExceptionGroup as group_error:
        raise AssertionError(f"seed {SEED}: {group_error.exceptions}") from group_error.exceptions[0]
    batches = await connection.fetchval("select count(*) from howdah.job_history where headers ? 'batch'")
    waited = await connection.fetchval("select count(*) from audit where event = 'depends'")
    log.warning(
        "seed %d: %s batches, %s dependencies, %s, slowest %s", SEED, batches, waited, race.counts, race.slowest
    )
    await checker.check()
    assert (
        await connection.fetchval(
            "select (select count(*) from howdah.dependencies) + (select count(*) from howdah.batches) + (select count(*) from howdah.batch_ends)"
        )
        == 0
    ), f"leftovers (seed {SEED})"
    assert max(race.slowest.values()) < BOUND, f"{race.slowest} (seed {SEED})"
    assert batches > 5
    assert waited > 20
