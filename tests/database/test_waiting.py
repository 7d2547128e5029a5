"""Jobs that wait: for other jobs, for a whole batch; and programs that wait for a job."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.jobs import (
    ack,
    add_dead_worker,
    cancelled,
    claim,
    claim_one,
    completed,
    dead,
    ended,
    enqueue,
    enqueue_many,
    enqueued,
    fate,
    live,
    refused,
    released,
    retried,
    status,
    waits_for_lock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg
    from conftest import Connect
    from support.jobs import Ack, Held

ENDS = [pytest.param(completed, id="completed"), pytest.param(dead, id="dead")]


async def settle(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("select seen from howdah.settle()"))


async def create_batch(connection: asyncpg.Connection, kind: str = "work") -> int:
    return int(await connection.fetchval("select howdah.create_batch($1)", kind))


async def finish(connection: asyncpg.Connection, job_id: int, how: Callable[[Held], Ack] = completed) -> None:
    """Let a worker claim one job, whatever else is ready, and end it."""
    held = await claim(connection)
    await ack(connection, *(how(job) if job.id == job_id else released(job) for job in held))


async def state(connection: asyncpg.Connection, job_id: int) -> str:
    return str((await status(connection, job_id))["state"])


@asynccontextmanager
async def heard(connect: Connect) -> AsyncIterator[list[str]]:
    """The words on the control channel."""
    words: list[str] = []
    listener = await connect()
    await listener.add_listener("howdah_control", lambda _c, _p, _n, word: words.append(str(word)))
    yield words
    await listener.remove_listener("howdah_control", lambda *_: None)


# -- dependencies -----------------------------------------------------------------------------------------------------


async def test_a_job_waits_until_all_that_it_depends_on_have_completed(connection: asyncpg.Connection) -> None:
    first, second = await enqueue(connection), await enqueue(connection)
    last = await enqueue(connection, depends_on=[first, second])
    assert await state(connection, last) == "waiting"
    await finish(connection, first)
    assert await state(connection, last) == "waiting"
    await finish(connection, second)
    row = await live(connection, last)
    assert row is not None
    assert (row["state"], row["due_at"]) == ("ready", None)
    assert (await claim_one(connection)).id == last
    assert await connection.fetchval("select count(*) from howdah.dependencies") == 0


@pytest.mark.parametrize("outcome", [dead, lambda job: cancelled(job, "ada", "no"), "queued"])
async def test_a_dependent_is_cancelled_with_the_reason_when_what_it_needs_fails(
    connection: asyncpg.Connection, outcome: Any
) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first])
    after_last = await enqueue(connection, depends_on=[last])
    if outcome == "queued":
        await connection.fetchval("select howdah.cancel($1, 'ada', 'no')", first)
    else:
        await finish(connection, first, outcome)
    await settle(connection)
    how = "dead" if outcome is dead else "cancelled"
    row = await status(connection, last)
    assert (row["state"], row["cancelled_by"], row["cancel_reason"]) == (
        "cancelled",
        "howdah",
        f"it depends on job {first}, which is {how}",
    )
    assert (await status(connection, after_last))["cancel_reason"] == f"it depends on job {last}, which is cancelled"
    assert await connection.fetchval("select count(*) from howdah.dependencies") == 0


async def test_a_long_chain_is_cancelled_to_its_end(connection: asyncpg.Connection) -> None:
    jobs = [await enqueue(connection)]
    for _ in range(150):
        jobs.append(await enqueue(connection, depends_on=[jobs[-1]]))
    await connection.execute("select howdah.cancel($1)", jobs[0])
    while await settle(connection):
        pass
    assert [await state(connection, job) for job in (jobs[1], jobs[75], jobs[-1])] == ["cancelled"] * 3


async def test_a_dependent_may_ask_to_run_whatever_becomes_of_the_others(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first], on_failed_dependency="run")
    await finish(connection, first, dead)
    assert await state(connection, last) == "ready"


async def test_an_attempt_that_failed_is_not_the_end(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first])
    await finish(connection, first, retried)
    assert await state(connection, last) == "waiting"
    await finish(connection, first)
    assert await state(connection, last) == "ready"


@pytest.mark.parametrize(("how", "then"), [(completed, "ready"), (dead, "cancelled")])
async def test_what_has_ended_already_counts_at_once(
    connection: asyncpg.Connection, how: Callable[[Held], Ack], then: str
) -> None:
    first = await enqueue(connection)
    await finish(connection, first, how)
    last = await enqueue(connection, depends_on=[first])
    await settle(connection)
    assert await state(connection, last) == then


async def test_a_job_that_ends_before_its_dependent_is_committed_does_not_leave_it_waiting(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    first = await enqueue(connection)
    async with heard(connect) as words:
        other = await connect()
        transaction = other.transaction()
        await transaction.start()
        last = await enqueue(other, depends_on=[first])
        await finish(connection, first)
        await transaction.commit()
        assert await state(connection, last) == "waiting"  # the ack could not see it
        await aeventually(lambda: "settle" in words)  # so the workers are told to look
    await settle(connection)
    assert await state(connection, last) == "ready"


@pytest.mark.parametrize(("how", "then"), [(completed, "ready"), (dead, "cancelled")])
async def test_an_ack_never_waits_for_a_dependent_that_somebody_holds(
    connection: asyncpg.Connection, connect: Connect, how: Callable[[Held], Ack], then: str
) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first])
    other = await connect()
    async with heard(connect) as words:
        async with other.transaction():
            await other.execute("select from howdah.jobs where id = $1 for update", last)
            async with asyncio.timeout(5):
                await finish(connection, first, how)
            assert await state(connection, last) == "waiting"
        await aeventually(lambda: "settle" in words)
    await connection.execute("delete from howdah.job_history")  # no history: what was passed over was written down
    await settle(connection)
    assert (await live(connection, last) or await status(connection, last))["state"] == then


async def test_a_dependent_with_a_time_runs_at_its_time(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first], delay=timedelta(hours=1))
    await finish(connection, first)
    assert await state(connection, last) == "scheduled"


async def test_a_waiting_job_can_be_cancelled_but_not_moved(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first])
    with refused("JB007", naming=f"job {last} is not queued"):
        await connection.execute("select howdah.reschedule($1, now())", last)
    assert await connection.fetchval("select howdah.cancel($1, 'ada')", last) == "cancelled"
    assert await connection.fetchval("select count(*) from howdah.dependencies") == 0
    await finish(connection, first)
    assert await state(connection, last) == "cancelled"


async def test_a_replacement_goes_on_waiting(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first], unique_key="one")
    row = await enqueued(connection, unique_key="one", on_conflict="replace", payload={"new": True})
    assert (row["id"], row["created"]) == (last, False)
    assert await state(connection, last) == "waiting"
    await finish(connection, first)
    assert await state(connection, last) == "ready"


async def test_many_jobs_can_be_enqueued_with_what_they_depend_on(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    plain, last = await enqueue_many(connection, {"kind": "work"}, {"kind": "work", "depends_on": [first]})
    assert await state(connection, plain["id"]) == "ready"
    assert await state(connection, last["id"]) == "waiting"


async def test_cancelling_a_subject_with_both_ends_of_a_dependency_ends_both(connection: asyncpg.Connection) -> None:
    first = await enqueue(connection, subject="course:1")
    last = await enqueue(connection, subject="course:1", depends_on=[first])
    assert await connection.fetchval("select howdah.cancel_subject('course:1', 'ada', 'gone')") == 2
    await settle(connection)
    assert [(await status(connection, job))["cancelled_by"] for job in (first, last)] == ["ada", "ada"]


async def test_a_rescued_job_still_holds_up_its_dependents_and_then_lets_them_go(
    connection: asyncpg.Connection,
) -> None:
    worker = await add_dead_worker(connection)
    first = await enqueue(connection)
    last = await enqueue(connection, depends_on=[first])
    await claim_one(connection, worker)
    await connection.fetch("select howdah.rescue()")
    assert await state(connection, last) == "waiting"
    held = await connection.fetchrow("select * from howdah.claim_suspect(1, 77, array['work'], array['default'])")
    await connection.execute(
        "select howdah.ack(array[$1::bigint], array[77::bigint], array['completed'], array[null::jsonb], array[null::jsonb],"
        " array[null::float8], array[0::float8], array[0::float8], array[null::jsonb], true)",
        held["id"],
    )
    assert await state(connection, last) == "ready"


async def test_a_dependent_that_is_let_go_for_a_time_to_come_sets_the_alarm(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    first = await enqueue(connection)
    await enqueue(connection, depends_on=[first], delay=timedelta(seconds=5))
    async with heard(connect) as words:
        await finish(connection, first)
        await aeventually(lambda: "due" in words)


async def test_no_ack_waits_for_the_open_cancellation_of_another_dependency(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """The dependent goes with the first that fails, while somebody has the other one's row in hand."""
    first, second = await enqueue(connection), await enqueue(connection)
    last = await enqueue(connection, depends_on=[first, second])
    other = await connect()
    async with other.transaction():
        await other.execute("select howdah.cancel($1)", second)
        async with asyncio.timeout(5):
            await finish(connection, first, dead)
        assert await state(connection, last) == "cancelled"
    await settle(connection)
    assert await connection.fetchval("select count(*) from howdah.dependencies") == 0


async def test_what_completes_while_a_dependent_is_looked_at_is_no_loss(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """Two acks at once: the second marks its dependency while the first is between its looks at the dependent."""
    first, second = await enqueue(connection), await enqueue(connection)
    dependent = await enqueue(connection, depends_on=[first, second])
    held = {job.id: job for job in await claim(connection)}
    await connection.execute(
        """create function public.linger() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock(42); return old; end $$;
        create trigger linger before delete on howdah.dependencies for each row execute function public.linger()"""
    )
    door, other = await connect(), await connect()
    await door.execute("select pg_advisory_lock(42)")
    acking = asyncio.create_task(ack(connection, completed(held[first])))
    pid = connection.get_server_pid()
    await aeventually(lambda: waits_for_lock(door, pid))
    assert await ack(other, completed(held[second])) == {second}
    await door.execute("select pg_advisory_unlock(42)")
    assert await acking == {first}
    await settle(connection)
    assert await state(connection, dependent) == "ready"


@pytest.mark.parametrize("keep", [True, False])
async def test_a_job_for_which_thousands_wait_is_acked_at_once_and_all_of_them_are_told(
    connection: asyncpg.Connection, keep: Any
) -> None:
    first, second = await enqueue(connection), await enqueue(connection)
    needs = [{"kind": "work", "depends_on": [job]} for job in (first, second) for _ in range(1100)]
    await enqueue_many(connection, *needs)
    held = {job.id: job for job in await claim(connection)}
    await ack(connection, completed(held[first]), keep=keep)
    assert await connection.fetchval("select count(*) from howdah.jobs where state = 'ready'") == 1000
    await ack(connection, dead(held[second]), keep=keep)
    assert await connection.fetchval("select count(*) from howdah.jobs where state = 'waiting'") == 200
    row = await connection.fetchrow("select * from howdah.settle(150)")
    assert tuple(row) == (150, 0.0)
    row = await connection.fetchrow("select * from howdah.settle(150)")
    assert tuple(row) == (50, None)
    assert dict(await connection.fetch("select state, count(*) from howdah.jobs group by 1")) == {"ready": 1100}
    assert await connection.fetchval("select count(*) from howdah.job_history where state = 'cancelled'") == 1100


async def test_settling_says_when_to_come_again(connection: asyncpg.Connection, connect: Connect) -> None:
    first, other = await enqueue(connection), await connect()
    async with other.transaction():
        await other.execute("select howdah.cancel($1)", first)  # it sees no dependent, and nobody sees its end
        last = await enqueue(connection, depends_on=[first])
        assert await connection.fetchval("select next_in from howdah.settle()") == 1
    async with other.transaction():
        await other.execute("select from howdah.jobs where id = $1 for update", last)
        assert await connection.fetchval("select next_in from howdah.settle()") == 1
        assert await other.fetchval("select seen from howdah.settle()") == 1
        assert await connection.fetchval("select next_in from howdah.settle()") == 1  # somebody else is at it
    assert tuple(await connection.fetchrow("select * from howdah.settle()")) == (0, None)


async def test_settling_waits_for_nobody_who_watches(connection: asyncpg.Connection, connect: Connect) -> None:
    job = await enqueue(connection)
    await connection.execute("select howdah.watch($1, 'me', -100)", job)
    other = await connect()
    async with other.transaction():
        await other.execute("select howdah.watch($1, 'me')", job)
        async with asyncio.timeout(5):
            await settle(connection)
    assert await connection.fetchval("select count(*) from howdah.waiters") == 1


async def test_a_job_cannot_wait_for_the_batch_of_which_it_is_a_part(connection: asyncpg.Connection) -> None:
    batch = await create_batch(connection)
    member = await enqueue(connection, batch=batch)
    behind = await enqueue(connection, depends_on=[batch])
    outer = await create_batch(connection)
    await enqueue(connection, batch=outer, depends_on=[behind])
    for other in (batch, behind, outer):
        with refused("JB002", naming=f"it would wait for the end of batch {batch}"):
            await enqueue(connection, batch=batch, depends_on=[member, other])
    assert await state(connection, await enqueue(connection, batch=batch, depends_on=[member])) == "waiting"


# -- batches ----------------------------------------------------------------------------------------------------------


async def counts(connection: asyncpg.Connection, batch: int) -> dict[str, int] | None:
    headers = (await status(connection, batch))["headers"]
    return headers and headers["batch"]


async def test_the_job_behind_a_batch_runs_after_all_of_it_with_the_counts(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        members = [await enqueue(connection, batch=batch) for _ in range(4)]
        members += [row["id"] for row in await enqueue_many(connection, {"kind": "work", "batch": batch})]
    await connection.execute("select howdah.cancel($1)", members[3])
    for member, how in zip(members[:3], (completed, dead, completed), strict=True):
        assert await state(connection, batch) == "waiting"
        await finish(connection, member, how)
    assert await state(connection, batch) == "waiting"
    await finish(connection, members[4])
    assert await state(connection, batch) == "ready"
    assert await counts(connection, batch) == {"completed": 3, "dead": 1, "cancelled": 1}
    assert (
        await connection.fetchval(
            "select (select count(*) from howdah.batches) + (select count(*) from howdah.batch_ends)"
        )
        == 0
    )
    assert [job.id for job in await claim(connection)] == [batch]


async def test_a_member_may_add_members(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        first = await enqueue(connection, batch=batch)
    held = await claim_one(connection)
    assert held.row["batch"] == batch
    # In the same commit as its own end.
    written = await connection.fetchval(
        "select howdah.ack_with($1, $2, 'completed', null, null, null, 0, 0, null, true, $3)",
        first,
        held.lease,
        [{"kind": "work", "batch": batch}],
    )
    assert written
    assert await state(connection, batch) == "waiting"
    second = await claim_one(connection)
    await ack(connection, completed(second))
    assert await state(connection, batch) == "ready"
    assert await counts(connection, batch) == {"completed": 2, "dead": 0, "cancelled": 0}


async def test_an_ack_under_a_lost_lease_enqueues_nothing(connection: asyncpg.Connection) -> None:
    await enqueue(connection)
    held = await claim_one(connection)
    assert not await connection.fetchval(
        "select howdah.ack_with($1, $2, 'completed', null, null, null, 0, 0, null, true, $3)",
        held.id,
        held.lease + 1,
        [{"kind": "work"}],
    )
    assert await connection.fetchval("select count(*) from howdah.jobs") == 1


async def test_nobody_joins_a_batch_that_is_over(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        member = await enqueue(connection, batch=batch)
    await finish(connection, member)
    with refused("JB007", naming=f"batch {batch} is over"):
        await enqueue(connection, batch=batch)
    with refused("JB007", naming=f"batch {batch} is over"):
        await enqueue_many(connection, {"kind": "work", "batch": batch})


async def test_a_batch_stays_open_while_somebody_joins_it(connection: asyncpg.Connection, connect: Connect) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        member = await enqueue(connection, batch=batch)
    joiner, another = await connect(), await connect()
    transaction = joiner.transaction()
    await transaction.start()
    joined = await enqueue(joiner, batch=batch)
    async with asyncio.timeout(5):  # neither another joiner nor the ack waits for the open transaction
        second = await enqueue(another, batch=batch)
        await finish(connection, member)
        await finish(connection, second)
    await settle(connection)
    assert await state(connection, batch) == "waiting"
    await transaction.commit()
    await settle(connection)
    assert await state(connection, batch) == "waiting"
    await finish(connection, joined)
    assert await state(connection, batch) == "ready"
    assert await counts(connection, batch) == {"completed": 3, "dead": 0, "cancelled": 0}


async def test_two_last_members_that_end_at_the_same_moment_end_the_batch_once(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        await enqueue_many(connection, *[{"kind": "work", "batch": batch}] * 2)
    one, two = await claim(connection)
    left, right = await connect(), await connect()
    async with heard(connect) as words:
        first, second = left.transaction(), right.transaction()
        await first.start()
        await second.start()
        async with asyncio.timeout(5):
            await ack(left, completed(one))
            await ack(right, completed(two))  # sees the other one alive, and waits for nobody
        await first.commit()
        await second.commit()
        await aeventually(lambda: "settle" in words)
    assert await asyncio.gather(settle(left), settle(right)) != [0, 0]
    assert await state(connection, batch) == "ready"
    assert await counts(connection, batch) == {"completed": 2, "dead": 0, "cancelled": 0}
    await settle(connection)
    assert [job.id for job in await claim(connection)] == [batch]


async def test_a_handler_with_an_old_snapshot_does_not_end_a_batch_that_somebody_has_joined(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        member = await enqueue(connection, batch=batch)
    held = await claim_one(connection)
    other = await connect()
    async with other.transaction(isolation="repeatable_read"):
        await other.fetchval("select count(*) from howdah.jobs")
        joined = await enqueue(connection, batch=batch)
        await other.execute("select howdah.complete($1, $2)", member, held.lease)
    await settle(connection)
    assert await state(connection, batch) == "waiting"
    await finish(connection, joined)
    assert await counts(connection, batch) == {"completed": 2, "dead": 0, "cancelled": 0}


async def test_the_end_of_a_batch_that_only_an_open_transaction_could_see_is_looked_for_again(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        await enqueue_many(connection, *[{"kind": "work", "batch": batch}] * 2)
    one, two = await claim(connection)
    other = await connect()
    async with other.transaction():
        await other.execute("select howdah.complete($1, $2)", one.id, one.lease)
        await ack(connection, completed(two))
        assert await connection.fetchval("select next_in from howdah.settle()") == 1
    assert await state(connection, batch) == "waiting"
    await settle(connection)
    assert await counts(connection, batch) == {"completed": 2, "dead": 0, "cancelled": 0}


async def test_an_ack_that_enqueues_waits_for_nobody_and_comes_again(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        await enqueue(connection, batch=batch)
    held = await claim_one(connection)
    more = [{"kind": "work", "batch": batch}], [{"kind": "work", "unique_key": "one"}]
    call = "select howdah.ack_with($1, $2, 'completed', null, null, null, 0, 0, null, true, $3)"
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select howdah.cancel($1)", batch)
    await enqueue(other, unique_key="one")
    for jobs in more:
        async with asyncio.timeout(5):
            assert not await connection.fetchval(call, held.id, held.lease, jobs)
        assert await fate(connection, held) == "busy"
    await transaction.rollback()
    assert await connection.fetchval(call, held.id, held.lease, more[0] + more[1])
    assert await connection.fetchval("select count(*) from howdah.jobs") == 3


async def test_a_long_transaction_that_cancels_a_member_keeps_nobody_from_joining(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        member = await enqueue(connection, batch=batch)
    canceller = await connect()
    async with canceller.transaction():
        await canceller.execute("select howdah.cancel($1)", member)
        async with asyncio.timeout(5):
            other = await enqueue(connection, batch=batch)
    await settle(connection)
    assert await state(connection, batch) == "waiting"
    await finish(connection, other)
    assert await counts(connection, batch) == {"completed": 1, "dead": 0, "cancelled": 1}


async def test_an_empty_batch_is_over_at_once(connection: asyncpg.Connection, connect: Connect) -> None:
    async with heard(connect) as words:
        batch = await create_batch(connection)
        await aeventually(lambda: "settle" in words)
    await settle(connection)
    assert await state(connection, batch) == "ready"
    assert await counts(connection, batch) == {"completed": 0, "dead": 0, "cancelled": 0}


async def test_a_batch_whose_last_job_was_cancelled_leaves_nothing_behind(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        batch = await create_batch(connection)
        members = [await enqueue(connection, batch=batch) for _ in range(2)]
    await finish(connection, members[0])
    await connection.execute("select howdah.cancel($1)", batch)
    await finish(connection, members[1])
    await settle(connection)
    assert await state(connection, batch) == "cancelled"
    assert (
        await connection.fetchval(
            "select (select count(*) from howdah.batches) + (select count(*) from howdah.batch_ends)"
        )
        == 0
    )


async def test_plain_acks_touch_none_of_it(connection: asyncpg.Connection, connect: Connect) -> None:
    """What jobs pay that nobody waits for: nothing is written, nothing is said."""
    await enqueue_many(connection, *[{"kind": "work"}] * 50)
    async with heard(connect) as words:
        await ack(connection, *map(completed, await claim(connection)))
        await connection.execute("select pg_notify('howdah_control', 'the end')")
        await aeventually(lambda: words == ["the end"])
    tables = "dependencies", "batches", "batch_ends", "waiters", "steps"
    for table in tables:
        assert await connection.fetchval(f"select pg_relation_size('howdah.{table}')") == 0


# -- programs that wait ----------------------------------------------------------------------------------------------


async def test_who_watches_a_job_is_told_of_its_end_and_of_no_other(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    mine, other = await enqueue(connection), await enqueue(connection)
    assert await connection.fetchval("select howdah.watch($1, 'me')", mine) == "ready"
    async with heard(connect) as words:
        held = await claim(connection)
        assert await connection.fetchval("select howdah.watch($1, 'me')", mine) == "running"
        await ack(connection, *map(completed, held))
        await aeventually(lambda: words == [f"ended {mine}"])
    assert await connection.fetchval("select count(*) from howdah.waiters") == 0
    assert await connection.fetchval("select howdah.watch($1, 'me')", other) == "completed"
    assert await connection.fetchval("select count(*) from howdah.waiters") == 0
    with refused("JB007", naming="there is no job 12345"):
        await connection.execute("select howdah.watch(12345, 'me')")


async def test_who_watches_a_job_is_told_when_it_is_cancelled(connection: asyncpg.Connection, connect: Connect) -> None:
    job = await enqueue(connection)
    await connection.execute("select howdah.watch($1, 'me')", job)
    async with heard(connect) as words:
        await connection.execute("select howdah.cancel($1)", job)
        await aeventually(lambda: f"ended {job}" in words)


async def test_an_ack_never_waits_for_a_watcher(connection: asyncpg.Connection, connect: Connect) -> None:
    job = await enqueue(connection)
    await connection.execute("select howdah.watch($1, 'me')", job)
    held = await claim_one(connection)
    other = await connect()
    async with other.transaction():
        await other.execute("select howdah.watch($1, 'me')", job)
        async with asyncio.timeout(5):
            await ack(connection, completed(held))
    assert await state(connection, job) == "completed"


# -- steps ------------------------------------------------------------------------------------------------------------


async def test_a_step_is_kept_once_and_only_under_the_current_lease(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    held = await claim_one(connection)
    keep = "select howdah.keep_step($1, $2, 'fetch', $3)"
    assert await connection.fetchval(keep, job, held.lease + 1, {"pages": 1}) is None
    assert await connection.fetchval("select count(*) from howdah.steps") == 0
    assert await connection.fetchval(keep, job, held.lease, {"pages": 2}) == {"pages": 2}
    assert await connection.fetchval(keep, job, held.lease, {"pages": 3}) == {"pages": 2}
    await ack(connection, retried(held))
    assert await connection.fetchval(keep, job, held.lease, {"pages": 4}) is None
    again = await claim_one(connection)
    assert await connection.fetchval(keep, job, again.lease, {"pages": 5}) == {"pages": 2}


async def test_steps_go_with_history(connection: asyncpg.Connection) -> None:
    done, open_ = await enqueue(connection), await enqueue(connection)
    for held in await claim(connection):
        await connection.execute("select howdah.keep_step($1, $2, 'one', '1')", held.id, held.lease)
    await connection.execute("update howdah.steps set created_at = now() - interval '20 days'")
    held = await connection.fetchval("select lease from howdah.jobs where id = $1", done)
    await connection.execute("select howdah.complete($1, $2)", done, held)
    assert await ended(connection, done) is not None
    await connection.execute("select howdah.drop_partitions(14)")
    assert [row[0] for row in await connection.fetch("select job_id from howdah.steps")] == [open_]


async def test_the_row_lock_of_a_step_is_brief(connection: asyncpg.Connection, connect: Connect) -> None:
    await enqueue(connection)
    held = await claim_one(connection)
    other = await connect()
    async with other.transaction():
        await other.execute("select howdah.keep_step($1, $2, 'one', '1')", held.id, held.lease)
        pid = other.get_server_pid()
        assert await ack(connection, completed(held)) == set()  # busy, not waiting
        assert not await waits_for_lock(connection, pid)
    assert await ack(connection, completed(held)) == {held.id}
