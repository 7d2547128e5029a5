"""The checker can fail: each promise that it watches is broken here by hand, and it names the job and the promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.jobs import ack, add_worker, claim_one, completed, enqueue

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
        (f"update {HISTORY} set crashes = 1", "1 crashes, but only 0 starts without an end"),
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
