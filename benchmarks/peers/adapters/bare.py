"""The ruler: hand-written asyncpg on a minimal table. No product: no retries, no leases, no heartbeat.

It claims, runs a no-op in a task for each job, and moves what is done to a history, on three connections. For latency it
inserts with a notification, and claims when it hears one: the floor of anything on LISTEN/NOTIFY.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, send_in_time

PEER = Peer(
    name="bare asyncpg",
    requires=("asyncpg==0.31.0", "uvloop==0.22.1"),
    module="bare",
    best={"batch": 500, "lanes": 3},
    fill="insert into jobs (payload) select {payload} from generate_series(1, {count}) n",
    finished="select not exists (select from jobs)",
    main=True,
    ruler=True,
    note="no product: the most that hand-written asyncpg gets out of this server, and the least latency",
)

TABLES = """
create table jobs (
  id bigint generated always as identity primary key,
  queue text not null default 'default',
  state smallint not null default 0,
  priority smallint not null default 0,
  attempt smallint not null default 0,
  run_at timestamptz not null default now(),
  locked_at timestamptz,
  payload jsonb not null) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index jobs_claim on jobs (queue, priority, run_at, id) where state = 0;
create table jobs_history (id bigint not null, queue text not null, attempt smallint not null, run_at timestamptz not null,
  finished_at timestamptz not null, payload jsonb not null);
create index on jobs_history (finished_at);
"""
CLAIM = """
with claimed as materialized (
  select id from jobs where queue = 'default' and state = 0 and run_at <= now()
  order by priority, run_at, id limit $1 for update skip locked)
update jobs set state = 1, attempt = attempt + 1, locked_at = now() from claimed where jobs.id = claimed.id
returning jobs.id, jobs.payload"""
FINISH = """
with done as (delete from jobs where id = any($1::bigint[]) returning id, queue, attempt, run_at, payload)
insert into jobs_history select id, queue, attempt, run_at, now(), payload from done"""
SEND = """
with sent as (insert into jobs (payload) values ($1) returning id) select id, pg_notify('jobs', 'default') from sent"""


async def _connect() -> Any:
    import asyncpg

    return await asyncpg.connect(URL)


async def setup() -> None:
    """Make the tables."""
    connection = await _connect()
    await connection.execute(TABLES)
    await connection.close()


async def send() -> None:
    """Insert single jobs with a notification."""
    connection = await _connect()
    await send_in_time(lambda payload: connection.fetchrow(SEND, json.dumps(payload)))
    await connection.close()


async def work() -> None:
    """Run the lanes, or listen."""
    if TASK["handler"] == "latency":
        await _listen()
    else:
        await asyncio.gather(*(_lane() for _ in range(SETTINGS["lanes"])))
        await asyncio.Event().wait()


async def _lane() -> None:
    connection = await _connect()
    while await _batch(connection):
        pass


async def _batch(connection: Any) -> bool:
    rows = await connection.fetch(CLAIM, SETTINGS["batch"])
    await asyncio.gather(*(asyncio.create_task(handle(json.loads(payload))) for _, payload in rows))
    if rows:
        await connection.execute(FINISH, [number for number, _ in rows])
    return bool(rows)


async def _listen() -> None:
    ear, connection, woken = await _connect(), await _connect(), asyncio.Event()
    await ear.add_listener("jobs", lambda *_: woken.set())
    while True:
        await woken.wait()
        woken.clear()
        while await _batch(connection):
            pass


if __name__ == "__main__":
    main(setup=setup, send=send, work=work)
