"""Limits and FIFO keys in SQL: what may be claimed, and what comes back."""

from __future__ import annotations

import asyncio
import random
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.checker import Checker
from support.eventually import aeventually
from support.jobs import (
    LEASES,
    Ack,
    Held,
    ack,
    add_dead_worker,
    add_worker,
    claim,
    claim_suspect,
    completed,
    dead,
    ended,
    enqueue,
    enqueue_coalesced,
    enqueue_many,
    live,
    refused,
    register,
    released,
    retried,
    status,
)

from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from conftest import Connect


async def set_limit(connection: asyncpg.Connection, name: str, **given: Any) -> None:
    places = "".join(f", {argument} => ${place}" for place, argument in enumerate(given, start=2))
    await connection.execute(f"select howdah.set_limit($1{places})", name, *given.values())


async def take(
    connection: asyncpg.Connection,
    count: int = 100,
    *,
    worker: int = 1,
    kinds: Sequence[str] = ("work",),
    queue: str = "default",
) -> list[Held]:
    """Claim limited jobs."""
    lease = secrets.randbelow(LEASES)
    rows = await connection.fetch(
        "select * from howdah.claim_limited($1, $2, $3, $4, $5)", worker, lease, list(kinds), [queue], [count]
    )
    return sorted((Held(row["id"], lease, row) for row in rows if row["id"] is not None), key=lambda held: held.id)


async def test_a_key_never_has_more_than_its_limit(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=2)
    jobs = [await enqueue(connection, limits=["api"]) for _ in range(5)]
    first = await take(connection)
    assert [held.id for held in first] == jobs[:2]
    assert await take(connection) == []
    assert await ack(connection, completed(first[0])) == {jobs[0]}
    assert [held.id for held in await take(connection)] == jobs[2:3]


async def test_several_keys_must_all_have_room_and_a_full_one_does_not_hold_up_the_others(
    connection: asyncpg.Connection,
) -> None:
    await set_limit(connection, "a", concurrency=1)
    await set_limit(connection, "b", concurrency=1)
    both = [await enqueue(connection, limits=["a", "b"]) for _ in range(3)]
    alone = await enqueue(connection, limits=["b"])
    [first] = await take(connection)
    assert first.id == both[0]
    only_a = await enqueue(connection, limits=["a"])
    assert await take(connection) == []
    await ack(connection, completed(first))
    assert ids(await take(connection)) == [both[1]]
    assert alone > 0
    assert only_a > 0


def ids(held: Sequence[Held]) -> list[int]:
    return [one.id for one in held]


async def everything(connection: asyncpg.Connection, **given: Any) -> list[Held]:
    """Claim until a look brings nothing and none is due at once."""
    found: list[Held] = []
    while held := await take(connection, **given):
        found += held
    return found


async def test_a_job_goes_to_the_line_of_the_key_that_is_full_and_comes_back_when_it_is_not(
    connection: asyncpg.Connection,
) -> None:
    await set_limit(connection, "few", concurrency=1)
    blocker = await enqueue(connection, limits=["few"])
    [held] = await take(connection)
    assert held.id == blocker
    job = await enqueue(connection, limits=["many", "few"])
    other = await enqueue(connection, limits=["many"])
    assert ids(await everything(connection)) == [other]
    assert (await live(connection, job))["gate"] == "few"
    await ack(connection, completed(held))
    assert ids(await everything(connection)) == [job]


async def test_priorities_decide_among_the_jobs_of_a_key(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=1)
    jobs = {priority: await enqueue(connection, limits=["api"], priority=priority) for priority in (0, 9, 5)}
    order = []
    while held := await take(connection):
        order += ids(held)
        await ack(connection, completed(held[0]))
    assert order == [jobs[9], jobs[5], jobs[0]]


async def test_the_name_itself_beats_patterns_and_the_longest_pattern_wins(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "chat:*", concurrency=1)
    await set_limit(connection, "chat:vip:*", concurrency=2)
    await set_limit(connection, "chat:vip:7", concurrency=3)
    keys = ["chat:1", "chat:2", "chat:vip:1", "chat:vip:7", "free"]
    for key in keys:
        for _ in range(5):
            await enqueue(connection, limits=[key])
    await everything(connection)
    held = dict(await connection.fetch("select key, count(*) from howdah.holds group by key"))
    assert held == {"chat:1": 1, "chat:2": 1, "chat:vip:1": 2, "chat:vip:7": 3, "free": 5}


async def test_a_rate_lets_so_many_start_and_tells_when_the_next_may(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "slow", rate=0.5, burst=2)
    for _ in range(4):
        await enqueue(connection, limits=["slow"])
    row = (await connection.fetch("select * from howdah.claim_limited(1, 1, '{work}', '{default}', '{10}')"))[0]
    assert row["id"] is not None
    assert 1.5 < row["next_in"] <= 2
    assert await connection.fetchval("select count(*) from howdah.jobs where lease is not null") == 2
    assert await take(connection) == []


async def test_a_job_given_back_before_it_started_gives_its_token_back_and_no_other_does(
    connection: asyncpg.Connection,
) -> None:
    await set_limit(connection, "slow", rate=0.001, burst=1)
    job = await enqueue(connection, limits=["slow"])
    [held] = await take(connection)
    await ack(connection, released(held))
    [held] = await take(connection)
    assert held.id == job
    assert await take(connection) == []
    await ack(connection, retried(held, delay=0))
    assert await take(connection) == []


async def test_limits_change_while_jobs_run(connection: asyncpg.Connection) -> None:
    for _ in range(10):
        await enqueue(connection, limits=["api"])
    await set_limit(connection, "api", concurrency=4)
    held = await take(connection)
    assert len(held) == 4
    await set_limit(connection, "api", concurrency=2)
    for one in held[:2]:
        await ack(connection, completed(one))
        assert await take(connection) == []
    await ack(connection, completed(held[2]))
    assert len(await take(connection)) == 1
    await set_limit(connection, "api", concurrency=5)
    assert len(await take(connection)) == 3
    assert await connection.fetchval("select howdah.remove_limit('api')")
    assert not await connection.fetchval("select howdah.remove_limit('api')")
    assert len(await take(connection)) == 2


async def test_a_limit_of_nothing_lets_nothing_start_until_it_is_raised(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=0)
    job = await enqueue(connection, limits=["api"])
    assert await take(connection) == []
    await set_limit(connection, "api", concurrency=1)
    assert ids(await take(connection)) == [job]


async def test_slots_come_back_with_the_rescue_and_never_earlier(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=1)
    worker = await add_dead_worker(connection)
    job = await enqueue(connection, limits=["api"])
    other = await enqueue(connection, limits=["api"])
    await take(connection, worker=worker)
    assert await take(connection) == []
    await connection.fetch("select * from howdah.rescue()")
    # The rescued one is a suspect, and takes its key as all others do.
    assert ids(await take(connection)) == [other]
    assert await claim_suspect(connection) is None
    await connection.execute("select howdah.cancel($1)", other)
    [blocking] = [row async for row in rows_of(connection, "select id, lease from howdah.jobs where lease is not null")]
    await ack(connection, completed(Held(blocking["id"], blocking["lease"], None)))
    suspect = await claim_suspect(connection)
    assert suspect is not None
    assert suspect.id == job
    assert await connection.fetchval("select array_agg(job_id) from howdah.holds") == [job]


async def rows_of(connection: asyncpg.Connection, sql: str) -> Any:
    for row in await connection.fetch(sql):
        yield row


# -- FIFO keys


async def test_jobs_of_a_fifo_key_run_one_at_a_time_in_order_also_over_retries(connection: asyncpg.Connection) -> None:
    jobs = [await enqueue(connection, fifo_key="k", priority=n) for n in range(4)]
    done: list[int] = []
    for step in range(8):
        held = await take(connection)
        assert len(held) == 1
        done += ids(held)
        assert await take(connection) == []
        if step % 2:
            await ack(connection, completed(held[0]))
        else:
            await ack(connection, retried(held[0], delay=3600))
            assert await take(connection) == []
            await connection.execute("select howdah.reschedule($1, now())", held[0].id)
    assert done == [job for job in jobs for _ in range(2)]
    assert await connection.fetchval("select count(*) from howdah.holds") == 0


@pytest.mark.parametrize("outcome", ["snoozed", "released", "rescued"])
async def test_a_fifo_key_is_held_until_its_job_has_ended(connection: asyncpg.Connection, outcome: str) -> None:
    first, second = [await enqueue(connection, fifo_key="k") for _ in range(2)]
    [held] = await take(connection)
    await ack(connection, Ack(held, outcome, delay=0.0, run=None))
    again = await claim_suspect(connection) if outcome == "rescued" else (await take(connection))[0]
    assert again is not None
    assert again.id == first
    assert await take(connection) == []
    await ack(connection, dead(again))
    assert ids(await take(connection)) == [second]


async def test_what_is_not_ready_yet_holds_up_nobody_of_its_fifo_key_until_it_has_begun(
    connection: asyncpg.Connection,
) -> None:
    later = await enqueue(connection, fifo_key="k", delay=timedelta(hours=1))
    first, second = [await enqueue(connection, fifo_key="k") for _ in range(2)]
    [held] = await take(connection)
    assert held.id == first
    await connection.execute("select howdah.reschedule($1, now())", later)
    assert await take(connection) == []
    await ack(connection, completed(held))
    assert ids(await take(connection)) == [later]
    assert second > 0


async def test_those_behind_a_job_that_is_cancelled_or_moved_go_on(connection: asyncpg.Connection) -> None:
    jobs = [await enqueue(connection, fifo_key="k", queue=queue) for queue in ("other", "other", "default")]
    assert await take(connection) == []
    await connection.execute("select howdah.cancel($1)", jobs[0])
    assert await take(connection) == []
    await connection.execute("select howdah.reschedule($1, now() + interval '1 hour')", jobs[1])
    assert ids(await take(connection)) == [jobs[2]]


# -- whatever else there is


async def test_limits_of_a_kind_and_a_queue_hold_for_what_is_queued_and_for_what_comes(
    connection: asyncpg.Connection,
) -> None:
    for _ in range(3):
        await enqueue(connection, "work")
    await set_limit(connection, "kind:work", concurrency=1)
    await register(connection, {"name": "work"})
    jobs = [
        await enqueue(connection, "work"),
        (await enqueue_many(connection, {"kind": "work"}))[0]["id"],
        await connection.fetchval("select howdah.enqueue_payloads('work', array['{}'::jsonb])"),
    ]
    await enqueue_coalesced(connection)
    await connection.fetch("select * from howdah.coalesce_events(10)")
    assert (
        await connection.fetchval(
            "select count(*) from howdah.jobs where limits = '{kind:work}' and gate = 'kind:work'"
        )
        == 7
    )
    assert await claim(connection) == []
    assert len(await take(connection)) == 1
    await set_limit(connection, "queue:default", concurrency=3)
    await connection.execute("select howdah.remove_limit('kind:work')")
    assert len(await everything(connection)) >= 2
    assert jobs


async def test_a_job_that_came_without_knowing_of_the_limit_of_its_kind_is_not_claimed_past_it(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """It was enqueued in a transaction that began before the limit was set, and commits after."""
    other = await connect()
    async with other.transaction():
        late = [await enqueue(other, "work") for _ in range(3)]
        await set_limit(connection, "kind:work", concurrency=1)
    plain = await enqueue(connection, "other")
    assert ids(await claim(connection, kinds=["work", "other"])) == [plain]
    assert ids(await take(connection)) == late[:1]


async def test_a_paused_queue_starts_none_and_loses_none(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection, limits=["api"])
    await connection.execute("select howdah.pause('default')")
    assert await take(connection) == []
    await connection.execute("select howdah.resume('default')")
    assert ids(await take(connection)) == [job]


async def test_a_limited_job_that_also_waits_for_others_takes_its_place_after_them(
    connection: asyncpg.Connection,
) -> None:
    first = await enqueue(connection)
    job = await enqueue(connection, limits=["api"], depends_on=[first])
    assert await take(connection) == []
    [held] = await claim(connection)
    await ack(connection, completed(held))
    assert ids(await take(connection)) == [job]


async def test_what_expired_while_it_waited_takes_no_token(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "slow", rate=0.001, burst=1)
    old = await enqueue(connection, limits=["slow"], expires_at=datetime.now(UTC) - timedelta(seconds=1))
    job = await enqueue(connection, limits=["slow"])
    assert ids(await take(connection)) == [job]
    assert (await ended(connection, old))["state"] == "cancelled"


async def test_a_retried_job_keeps_its_keys(connection: asyncpg.Connection) -> None:
    await enqueue(connection, limits=["api"], fifo_key="k")
    [held] = await take(connection)
    await ack(connection, dead(held))
    new = await connection.fetchval("select howdah.retry($1)", held.id)
    row = await live(connection, new)
    assert (row["limits"], row["fifo_key"], row["gate"]) == (["api"], "k", "fifo:k")


async def test_a_worker_in_another_language_obeys_limits(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=1)
    jobs = [await enqueue(connection, limits=["api"]) for _ in range(2)] + [await enqueue(connection)]
    claim_all = "select id, lease from howdah.claim('js:1', '{default}', '{work}', 10)"
    rows = await connection.fetch(claim_all)
    assert sorted(row["id"] for row in rows) == [jobs[0], jobs[2]]
    assert await connection.fetch(claim_all) == []
    lease = next(row["lease"] for row in rows if row["id"] == jobs[0])
    await connection.execute("select howdah.complete($1, $2)", jobs[0], lease)
    assert [row["id"] for row in await connection.fetch(claim_all)] == [jobs[1]]


async def test_a_completion_in_an_open_transaction_gives_the_slot_back_with_its_commit_and_holds_up_nobody(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    await set_limit(connection, "api", concurrency=2)
    jobs = [await enqueue(connection, limits=["api"]) for _ in range(4)]
    first, second = await take(connection)
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select howdah.complete($1, $2)", first.id, first.lease)
    assert await take(connection) == []
    await ack(connection, completed(second))
    assert ids(await take(connection)) == [jobs[2]]
    await transaction.commit()
    assert ids(await take(connection)) == [jobs[3]]


async def test_a_claim_whose_reply_was_lost_gives_its_slots_back(connection: asyncpg.Connection) -> None:
    await set_limit(connection, "api", concurrency=1)
    job = await enqueue(connection, limits=["api"])
    [held] = await take(connection)
    await connection.fetch(SQL["disclaim"], 1, [held.lease])
    assert ids(await take(connection)) == [job]


async def test_what_no_opening_leads_to_is_found_by_the_sweep(connection: asyncpg.Connection) -> None:
    job = await enqueue(connection, limits=["api"])
    await connection.execute("truncate howdah.openings")
    assert await take(connection) == []
    await connection.fetch("select * from howdah.settle()")
    assert ids(await take(connection)) == [job]


@pytest.mark.parametrize(
    ("naming", "given"),
    [
        ("limits", {"limits": ["kind:work"]}),
        ("limits", {"limits": ["a*"]}),
        ("limits", {"limits": [""]}),
        ("limits", {"limits": [None]}),
        ("limits", {"limits": [str(n) for n in range(21)]}),
        ("fifo_key", {"fifo_key": ""}),
    ],
)
async def test_keys_that_cannot_be_are_refused(
    connection: asyncpg.Connection, naming: str, given: dict[str, Any]
) -> None:
    with refused("JB002", naming=naming):
        await enqueue(connection, **given)


@pytest.mark.parametrize(
    ("naming", "name", "given"),
    [
        ("name", "a*b", {"concurrency": 1}),
        ("name", "", {"concurrency": 1}),
        ("name", "fifo:x", {"concurrency": 1}),
        ("concurrency", "a", {}),
        ("concurrency", "a", {"concurrency": -1}),
        ("rate", "a", {"rate": 0.0}),
        ("burst", "a", {"concurrency": 1, "burst": 2}),
        ("burst", "a", {"rate": 1.0, "burst": 0}),
    ],
)
async def test_limits_that_cannot_be_are_refused(
    connection: asyncpg.Connection, naming: str, name: str, given: dict[str, Any]
) -> None:
    with refused("JB002", naming=naming):
        await set_limit(connection, name, **given)


async def test_explain_tells_which_key_is_full_and_who_has_it(connection: asyncpg.Connection) -> None:
    worker = await add_worker(connection)
    await set_limit(connection, "chat:*", concurrency=1)
    await set_limit(connection, "slow", rate=0.1)
    first, second = [await enqueue(connection, limits=["chat:1"]) for _ in range(2)]
    rated = [await enqueue(connection, limits=["slow"]) for _ in range(3)]
    line = [await enqueue(connection, fifo_key="k") for _ in range(3)]
    await everything(connection, worker=worker)

    async def why(job: int) -> str:
        return str(await connection.fetchval("select howdah.explain($1)", job))

    said = await why(second)
    assert "limit chat:1 is reached: 1 may run at once (limit chat:*)" in said
    assert f"held by job {first} (worker {worker} tester:1)" in said
    assert "limit slow lets 0.1 start in a second: the next token is free in" in await why(rated[1])
    assert "and one" in await why(rated[2]) or "1 before it, which takes 10 s" in await why(rated[2])
    assert f"it is behind job {line[0]} (work, running by worker {worker}) of its FIFO key k" in await why(line[1])
    assert "and 1 more" in await why(line[2])
    assert (await status(connection, second))["state"] == "waiting"


async def test_many_claimers_never_exceed_a_limit_and_lose_no_job(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    """Four workers claim and ack at once on three hot keys and two FIFO lines."""
    checker = await Checker(connection).install()
    await set_limit(connection, "a", concurrency=3)
    await set_limit(connection, "b:*", concurrency=2)
    choices: list[dict[str, Any]] = [
        {"limits": ["a"]},
        {"limits": ["b:1"]},
        {"limits": ["a", "b:1"]},
        {"limits": ["b:1", "b:2"], "fifo_key": "k"},
        {"limits": ["b:2", "a"]},
        {"fifo_key": "k", "priority": 3},
        {"fifo_key": "l"},
    ]
    jobs = await enqueue_many(
        connection, *({"kind": "work", "max_attempts": 100, **choices[n % 7]} for n in range(210))
    )

    async def work(number: int) -> None:
        mine = await connect()
        dice = random.Random(number)  # noqa: S311
        while await connection_is_busy(mine):
            held = await take(mine, dice.choice([1, 2, 10]), worker=number)
            await asyncio.sleep(dice.random() * 0.004)
            if held:
                said = [dice.choice([completed(one), completed(one), retried(one), released(one)]) for one in held]
                assert await ack(mine, *said) == set(ids(held))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(1, 5):
            group.create_task(work(number))
    assert await connection.fetchval("select count(*) from howdah.job_history") == len(jobs)
    assert await connection.fetchval("select count(*) from howdah.holds") == 0
    await checker.check()
    most = dict(await connection.fetch(MOST))
    assert (most["a"], most["b:1"], most["fifo:k"]) == (3, 2, 1), "the limits were reached"


async def connection_is_busy(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select exists (select from howdah.jobs)"))


#: The most holds of each key at any instant.
MOST = """select key, max(held) from (select key, sum(step) over (partition by key order by seq) as held from public.audit_holds) h group by key"""


async def test_a_job_sent_to_the_line_of_a_key_without_tokens_is_found_when_one_is_there(
    connection: asyncpg.Connection,
) -> None:
    await set_limit(connection, "slow", rate=10, burst=1)
    await enqueue(connection, limits=["slow"])
    assert len(await take(connection)) == 1
    job = await enqueue(connection, limits=["other", "slow"])
    assert await take(connection) == []
    assert (await live(connection, job))["gate"] == "slow"

    async def starts() -> bool:
        return ids(await take(connection)) == [job]

    await aeventually(starts, 5)
