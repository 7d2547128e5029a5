"""awa: a Rust engine with handlers in Python."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from peers.peer import Peer
from peers.process import SETTINGS, TASK, URL, handle, main, new_payload, send_in_time

PEER = Peer(
    name="awa-pg",
    module="awa",
    requires=("awa-pg==0.6.9", "asyncpg==0.31.0", "uvloop==0.22.1"),
    best={"workers": 200, "claimers": 1, "batch": 512},
    bounded={"workers": 100, "claimers": 1, "batch": 512},
    finished=None,
    note="its queue storage has no table to poll: until the last handler's end, not until all is written",
)


@dataclass
class Work:
    """A payload."""

    n: int
    t: float
    fails: bool
    pad: str


def _client() -> Any:
    from awa import AsyncClient

    return AsyncClient(URL, max_connections=12)


async def setup() -> None:
    """Make its tables."""
    client = _client()
    await client.migrate()
    await client.install_queue_storage(reset=True)
    await client.close()


async def fill() -> None:
    """Copy all jobs in."""
    client = _client()
    for first in range(0, TASK["count"], 1000):
        last = min(first + 1000, TASK["count"])
        await client.enqueue_many_copy([Work(**{**new_payload(), "n": n}) for n in range(first, last)], queue="job")
    await client.close()


async def send() -> None:
    """Insert single jobs."""
    client = _client()
    await send_in_time(lambda payload: client.insert(Work(**payload), queue="job"))
    await client.close()


async def work() -> None:
    """Run one worker."""
    client = _client()

    @client.task(Work, queue="job")
    async def job(job: Any) -> None:
        await handle(asdict(job.args))

    queue = {
        "name": "job",
        "max_workers": SETTINGS["workers"],
        "claimers": SETTINGS["claimers"],
        "claim_batch_size": SETTINGS["batch"],
    }
    await client.start([queue])
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(setup=setup, fill=fill, send=send, work=work)
