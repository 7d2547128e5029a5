"""Howdah: history kept, acks fenced, metrics on, the settings that it has when nobody says otherwise."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, new_payload, say, send_batches, send_in_time

ROOT = Path(__file__).parents[3]

PEER = Peer(
    name="howdah",
    requires=("-e", f"{ROOT}"),
    best={"slots": 100},
    bounded={"slots": 100},
    fill="insert into howdah.jobs (kind, payload) select 'job', {payload} from generate_series(1, {count}) n",
    finished="select not exists (select from howdah.jobs)",
    main=True,
    note="the defaults: 100 slots, the history kept; a retry after a second instead of one to two",
)


async def setup() -> None:
    """Make the schema."""
    import asyncpg

    from howdah.migrate import migrate

    connection = await asyncpg.connect(URL)
    await migrate(connection)
    await connection.close()


async def send() -> None:
    """Enqueue single jobs, each in a transaction of its own, with the SQL function that any language calls."""
    from howdah.client import Client

    async with Client(URL) as client:
        await send_in_time(lambda payload: client.enqueue("job", payload))


async def flood() -> None:
    """Enqueue in batches."""
    from howdah.client import Client

    async with Client(URL) as client:
        await send_batches(lambda payloads: client.enqueue_payloads("job", payloads))


async def crowd() -> None:
    """Enqueue from many connections at once, for some seconds; tells the rate."""
    import asyncpg

    text = json.dumps(new_payload())
    connections = [await asyncpg.connect(URL) for _ in range(TASK["connections"])]
    began = monotonic()

    async def one(connection: asyncpg.Connection) -> int:
        statement, sent = await connection.prepare("select howdah.enqueue('job', $1::jsonb)"), 0
        while monotonic() - began < TASK["seconds"]:
            await statement.fetchval(text)
            sent += 1
        return sent

    sent = sum(await asyncio.gather(*map(one, connections)))
    say("sent", rate=sent / (monotonic() - began))
    for connection in connections:
        await connection.close()


async def work() -> None:
    """Become `howdah run`, with this module for its handlers."""
    environment = {
        "HOWDAH_DATABASE_URL": URL,
        "HOWDAH_HANDLERS": "peers.adapters.howdah",
        "HOWDAH_QUEUES": f"default:{SETTINGS['slots']}",
        "HOWDAH_HTTP_PORT": str(SETTINGS.get("port", 0)),
        "HOWDAH_LOG_LEVEL": "warning",
    }
    await asyncio.sleep(0)
    os.execve(sys.executable, [sys.executable, "-m", "howdah", "run"], {**os.environ, **environment})  # noqa: S606


if __name__ == "__main__":
    main(setup=setup, send=send, flood=flood, crowd=crowd, work=work)
elif TASK:
    from howdah import Job, handler

    @handler("job", backoff=lambda _attempt: 1.0)  # as the others': a retry after a second
    async def job(job: Job[Any]) -> None:
        """Do what the workload asks."""
        await handle(job.payload)
