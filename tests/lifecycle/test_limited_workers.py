"""Limits over several real workers, judged from what handlers and a trigger wrote by the database's clock."""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.eventually import aeventually
from support.facts import RECORD, count_ends, end_of, has_ended, is_empty, make_runs, outcomes, running, runs
from support.jobs import enqueue, enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.figures import Figures

pytestmark = pytest.mark.faults

#: When a slot was given back, by the database's clock.
FREED = """
create table public.freed (job bigint, key text, at timestamptz not null default clock_timestamp());
create function public.note_freed() returns trigger language plpgsql security definer as $$
begin
  insert into public.freed (job, key) values (old.job_id, old.key);
  return null;
end $$;
create trigger note_freed after delete on howdah.holds for each row execute function public.note_freed();
"""


async def most_at_once(connection: asyncpg.Connection, key: str) -> int:
    """The most jobs of a key that were between the start of their handler and the return of their slot, at any instant."""
    most: int = await connection.fetchval(
        """with run as (
          select r.job, r.started_at, (select min(f.at) from public.freed f where f.job = r.job and f.key = $1 and f.at > r.started_at) as ended_at
          from public.runs r where exists (select from public.freed f where f.job = r.job and f.key = $1)),
        span as (  -- a FIFO key stays with its job from one attempt to the next
          select job, min(started_at) as started_at, ended_at from run group by job, ended_at)
        select max(open) from (
          select sum(step) over (order by at, step) as open from (
            select started_at as at, 1 as step from span union all select ended_at, -1 from span) steps) opened""",
        key,
    )
    return most


def limited(key: str, count: int, seconds: float = 0.0, **given: Any) -> list[dict[str, Any]]:
    return [{"kind": "record", "limits": [key], "payload": {"seconds": seconds}, **given} for _ in range(count)]


@pytest.mark.fault(
    "Process",
    "a worker that holds limits and a FIFO key is killed",
    "limits hold at every instant; places come back with the rescue",
)
async def test_limits_hold_at_every_instant_over_two_workers_one_of_which_is_killed(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await make_runs(connection)
    await connection.execute(FREED)
    await connection.execute("select howdah.set_limit('three', concurrency => 3)")
    await connection.execute("select howdah.set_limit('slow', rate => 20, burst => 2)")
    await connection.execute("select howdah.set_limit('kind:lone', concurrency => 1)")
    workers = [await daemon(RECORD, queues="default:10", lease_ttl=2) for _ in range(2)]
    [victim] = await enqueue_many(connection, *limited("three", 1, 3))
    [pid] = await aeventually(lambda: runs(connection, "pid"))
    await enqueue_many(
        connection,
        *limited("three", 150, 0.05),
        *limited("slow", 60),
        *({"kind": "record", "fifo_key": "line", "payload": {"seconds": 0.02}} for _ in range(40)),
    )
    await aeventually(lambda: connection.fetchval("select count(distinct pid) = 2 from public.runs"))
    next(worker for worker in workers if worker.process.pid == pid).kill()
    killed_at = await connection.fetchval("select clock_timestamp()")
    await aeventually(lambda: is_empty(connection), 25)

    assert await most_at_once(connection, "three") == 3
    assert await most_at_once(connection, "fifo:line") == 1
    # The slot of the job that died came back with the rescue, and not before: it is freed when the ttl had passed.
    freed = await connection.fetchval("select min(at) from public.freed where job = $1", victim["id"])
    assert freed > killed_at
    # By the moment of the claim, which the token is of: a second holds what the bucket holds, and what flows in.
    times = await connection.fetch(
        "select claimed_at from howdah.job_history where limits = '{slow}' order by claimed_at"
    )
    moments = [row["claimed_at"].timestamp() for row in times]
    assert max(sum(begin <= at < begin + 1 for at in moments) for begin in moments) <= 20 + 2
    # In order; the one that died while it ran is run again before the next.
    line = await connection.fetch(
        "select r.job from public.runs r join howdah.job_history h on h.id = r.job where h.fifo_key = 'line' order by r.started_at"
    )
    assert [before["job"] for before, after in pairwise([*line, {"job": 0}]) if before != after] == sorted(
        {row["job"] for row in line}
    )
    assert len({row["job"] for row in line}) == 40
    figures.faults += 1
    await count_ends(connection, figures)


async def test_a_hundred_thousand_jobs_of_a_full_key_are_in_nobodys_way(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    await connection.execute("select howdah.set_limit('one', concurrency => 1)")
    await connection.execute(
        "select howdah.enqueue_payloads('record', array_fill('{\"seconds\": 600}'::jsonb, array[100000]), limits => array['one'], priority => 10)"
    )
    await daemon(RECORD, queues="default:10")
    await aeventually(lambda: runs(connection, "job"))
    waits = []
    for given in ({}, {"limits": ["other"]}, {"limits": ["one-more", "other"]}, {"fifo_key": "line"}):
        for _ in range(5):
            job = await enqueue(connection, "record", **given)
            await end_of(connection, job)
            waits.append(
                await connection.fetchval(
                    "select extract(epoch from r.started_at - h.created_at)::float8 from public.runs r join howdah.job_history h on h.id = r.job where h.id = $1",
                    job,
                )
            )
    assert sorted(waits)[len(waits) // 2] < 0.05, waits
    assert await running(connection) == 1
    assert not await has_ended(connection, 1)
    for claim, most in (
        ("howdah.claim_ready(1, 5, '{record}', '{default}', '{100}', '{default}', '{-1}', '{0}', '{10}')", 200),
        ("howdah.claim_limited(1, 5, '{record}', '{default}', '{100}')", 100),
    ):
        assert await buffers(connection, claim) < most


async def buffers(connection: asyncpg.Connection, call: str) -> int:
    """How many buffers a call reads, its plans made."""
    await connection.execute(f"select * from {call}")
    plan = json.loads(await connection.fetchval(f"explain (analyze, buffers, format json) select * from {call}"))[0][
        "Plan"
    ]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


async def test_limited_jobs_and_others_share_the_slots_of_a_busy_queue(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await make_runs(connection)
    await connection.execute("select howdah.set_limit('api', concurrency => 100)")
    await daemon(RECORD + QUICK, queues="default:4")
    await enqueue_many(connection, *[{"kind": "quick"} for _ in range(3000)])
    await aeventually(lambda: connection.fetchval("select count(*) > 100 from howdah.job_history"))
    await enqueue_many(connection, *({"kind": "quick", "limits": ["api"]} for _ in range(100)))
    await aeventually(lambda: is_empty(connection), 30)
    beside, after = await connection.fetchrow(
        """with limited as (select min(started_at) as first, max(finished_at) as last from howdah.job_history where limits is not null)
        select count(*) filter (where finished_at between first and last), count(*) filter (where finished_at > last)
        from howdah.job_history, limited where limits is null"""
    )
    assert after > 500, "the limited ones waited for all others"
    assert beside > 30, "the others waited for the limited ones"


async def test_a_deaf_worker_knows_of_the_room_that_its_own_jobs_make(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    """However they end: by an ack, by one that brings jobs along, or in the handler's own transaction."""
    await connection.execute("select howdah.set_limit('one', concurrency => 1)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connect is refused
        nowhere = f"postgresql://postgres@127.0.0.1:{taken.getsockname()[1]}/postgres"
        await daemon(QUICK, queues="default:4", listen_database_url=nowhere, poll_interval=60)
        for kind in ("quick", "brings", "commits"):
            await enqueue_many(connection, *({"kind": kind, "limits": ["one"]} for _ in range(40)))
            # A look a second would take forty.
            await aeventually(lambda: is_empty(connection), 10)
    assert await outcomes(connection) == {"completed": 160}


QUICK = """
@handler("quick")
async def quick(job: Job) -> None:
    await asyncio.sleep(0.002)

@handler("brings")
async def brings(job: Job) -> None:
    await job.enqueue("quick")

@handler("commits", transaction=True)
async def commits(job: Job, connection: asyncpg.Connection) -> None:
    await connection.execute("select 1")
"""
