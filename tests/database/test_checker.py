"""The checker can fail: each promise that it watches is broken here by hand, and it names the job and the promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.jobs import ack, add_worker, claim, claim_one, completed, dead, enqueue

if TYPE_CHECKING:
    import asyncpg

START = "insert into journal (job_id, lease, attempt, worker, event) select id, lease, attempt, 'x', 'start' from howdah.job_history"
HISTORY = "howdah.job_history"


async def a_good_life(connection: asyncpg.Connection) -> Checker:
    checker = await Checker(connection).install()
    worker = await add_worker(connection)
    await enqueue(connection, unique_key="key")
    job = await claim_one(connection, worker)
    await connection.execute(
        "insert into journal (job_id, lease, attempt, worker, event) values ($1, $2, 1, 'x', 'start'), ($1, $2, 1, 'x', 'end')",
        job.id,
        job.lease,
    )
    await ack(connection, completed(job))
    return checker


async def test_a_good_life_passes(connection: asyncpg.Connection) -> None:
    await (await a_good_life(connection)).check()


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        (f"update {HISTORY} set result = '1'", "its history was changed 1 times"),
        (f"insert into {HISTORY} select * from {HISTORY}", "it has 2 ends"),
        (f"delete from {HISTORY}", "it has no end: it is nowhere"),
        ("select howdah.enqueue('work')", "job 2: it has no end: it is ready"),
        ("update journal set lease = 5", "started under lease 5 without a committed claim"),
        ("update journal set at = at - interval '1 h'", "before its claim"),
        (START, "started twice under one lease"),
        (f"update {HISTORY} set lease = 5", "written under lease 5"),
        (f"update {HISTORY} set attempt = 4", "4 attempts of at most 3"),
        (f"update {HISTORY} set crashes = 1", "1 crashes, but only 0 starts that came to no end"),
        (f"delete from journal; update {HISTORY} set state = 'dead'", "and never started"),
        (f"insert into effect values (1, 1); update {HISTORY} set kind = 'effect', state = 'dead'", "its effect is there 1 times"),
        (f"update {HISTORY} set kind = 'effect'", "its effect is there 0 times"),
        (
            """drop index howdah.jobs_unique_key;
            insert into howdah.jobs (kind, unique_key) values ('work', 'k'), ('work', 'k')""",
            "both with the unique_key 'k'",
        ),
        (
            "insert into howdah.jobs (kind, due_at) values ('work', now() + interval '1 h'); update howdah.jobs set due_at = null",
            "and made ready at",
        ),
    ],
)  # fmt: skip
async def test_a_broken_promise_is_named(connection: asyncpg.Connection, fault: str, promise: str) -> None:
    checker = await a_good_life(connection)
    await connection.execute(fault)
    with pytest.raises(AssertionError, match="broken promises") as caught:
        await checker.check()
    assert promise in str(caught.value)


async def a_good_wait(connection: asyncpg.Connection) -> Checker:
    """Jobs 1 and 2 make batch 3, job 4 needs 1, job 5 does not need that 2 goes well; job 6 needs 2, which is dead."""
    checker = await Checker(connection).install()
    worker = await add_worker(connection)
    async with connection.transaction():
        first, second = await enqueue(connection), await enqueue(connection, priority=1)
        batch = await connection.fetchval("select howdah.create_batch('work')")
        await connection.execute("update howdah.jobs set batch = $1 where id = any ($2)", batch, [first, second])
        await connection.execute(
            "update audit set row = row || jsonb_build_object('batch', $1::bigint) where job_id = any ($2)",
            batch,
            [first, second],
        )
        await enqueue(connection, depends_on=[first])
        await enqueue(connection, depends_on=[second], on_failed_dependency="run")
        await enqueue(connection, depends_on=[second])
    while jobs := await claim(connection, worker):
        for job in jobs:
            for event in ("start", "end"):
                await connection.execute(
                    "insert into journal (job_id, lease, attempt, worker, event) values ($1, $2, 1, 'x', $3)",
                    job.id,
                    job.lease,
                    event,
                )
            await ack(connection, dead(job) if job.id == second else completed(job))
    return checker


async def test_a_good_wait_passes(connection: asyncpg.Connection) -> None:
    checker = await a_good_wait(connection)
    await checker.check()
    states = dict(await connection.fetch("select id, state from howdah.job_history"))
    assert states == {1: "completed", 2: "dead", 3: "completed", 4: "completed", 5: "completed", 6: "cancelled"}


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("update audit set seq = seq + 1000 where job_id = 1 and event = 'ended'", "job 4: it stopped waiting before job 1 had ended"),
        ("update journal set at = at - interval '1 h' where job_id = 4", "before the end of job 1"),
        ("update audit set row = row || '{\"state\": \"dead\"}' where event = 'ended' and job_id = 1", "job 1, which it needs, was dead"),
        ("update audit set row = row || '{\"state\": \"completed\"}' where event = 'ended' and job_id = 2", "job 6: it was cancelled for a dependency, and all that it needs have completed"),
        ("insert into audit (event, job_id, row) select event, job_id, row from audit where job_id = 3 and event = 'moved'", "batch 3 was over 2 times"),
        ("update audit set seq = seq + 1000 where job_id = 2 and event = 'ended'", "batch 3 was over before the end of job 2"),
        (f"update {HISTORY} set headers = '{{\"batch\": {{\"completed\": 2, \"dead\": 0, \"cancelled\": 0}}}}' where id = 3", "batch 3 tells of {"),
        ("update journal set at = at - interval '1 h' where job_id = 3", "job 3: it started at"),
    ],
)  # fmt: skip
async def test_a_broken_wait_is_named(connection: asyncpg.Connection, fault: str, promise: str) -> None:
    checker = await a_good_wait(connection)
    await connection.execute(
        "alter table audit alter column seq drop identity if exists; create sequence s start 500; alter table audit alter column seq set default nextval('s')"
    )
    await connection.execute(fault)
    with pytest.raises(AssertionError, match="broken promises") as caught:
        await checker.check()
    assert promise in str(caught.value)
