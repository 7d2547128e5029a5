"""The process side that all Python peers share: the task, the handlers, the recorder, and the words to the harness.

Runs in the peer's own environment: only the standard library, and asyncpg or psycopg where the handler needs SQL.
A word to the harness is a line of JSON on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from array import array
from itertools import pairwise
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: What the harness wants of this process.
TASK: dict[str, Any] = json.loads(os.environ.get("PEERS_TASK", "{}"))
URL: str = TASK.get("url", "")
REDIS: str = TASK.get("redis", "")
SETTINGS: dict[str, Any] = TASK.get("settings", {})
#: One small statement of an application, the same for every peer.
STATEMENT = "update accounts set hits = hits + 1 where id = $1"
ACCOUNTS, CONNECTIONS = 1000, 10


def say(event: str, **facts: Any) -> None:
    """Tell the harness something."""
    print(json.dumps({"event": event, "at": time(), **facts}), flush=True)


class Recorder:
    """Counts handlers: when the first began, and when each ended."""

    def __init__(self) -> None:
        self.wanted: int = TASK.get("count", 0)
        self.ends = array("d")
        self.waits = array("d")
        self.began = False
        self._cpu = 0.0
        self._failed: set[int] = set()

    def begin(self) -> None:
        """Note that a handler begins."""
        if not self.began:
            self.began = True
            self._cpu = cpu()
            say("first")
            if "seconds" in TASK:
                asyncio.get_running_loop().call_later(TASK["seconds"], self._tell_in_time)

    def end(self) -> None:
        """Note that a handler has ended well."""
        self.ends.append(perf_counter())
        if len(self.ends) == self.wanted:
            self.tell()

    def wait(self, sent: float) -> None:
        """Note how long a job waited."""
        self.waits.append(time() - sent)
        if len(self.waits) == self.wanted:
            say("waits", waits=list(self.waits))

    def fails(self, number: int) -> bool:
        """Tell whether this is the first attempt of a job that fails once."""
        if number in self._failed:
            return False
        self._failed.add(number)
        return True

    def _tell_in_time(self) -> None:
        if len(self.ends) < self.wanted:
            self.wanted = -1
            self.tell()

    def tell(self) -> None:
        """Tell what was counted."""
        count = len(self.ends)
        if not count:
            say("handled", handled=0, cpu=0, rss=0, tenths=[0] * 10)
            return
        marks = [self.ends[min(tenth * count // 10, count - 1)] for tenth in range(11)]
        tenths = [after - before for before, after in pairwise(marks)]
        say(
            "handled",
            handled=count,
            cpu=cpu() - self._cpu,
            rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            tenths=[count / 10 / seconds if seconds > 0 else 0 for seconds in tenths],
        )


RECORDER = Recorder()


async def handle_noop(_payload: dict[str, Any]) -> None:
    """Do nothing."""
    RECORDER.begin()
    RECORDER.end()


async def handle_latency(payload: dict[str, Any]) -> None:
    """Tell how long the job waited."""
    RECORDER.wait(payload["t"])


async def handle_wait(_payload: dict[str, Any]) -> None:
    """Wait for 5 ms, as for a service."""
    RECORDER.begin()
    await asyncio.sleep(0.005)
    RECORDER.end()


async def handle_sql(payload: dict[str, Any]) -> None:
    """Make one small statement on a pool of ten connections."""
    RECORDER.begin()
    pool = await _pool()
    await pool.execute(STATEMENT, payload["n"] % ACCOUNTS)
    RECORDER.end()


async def handle_failing(payload: dict[str, Any]) -> None:
    """Fail at first, if the payload says so."""
    RECORDER.begin()
    if payload["fails"] and RECORDER.fails(payload["n"]):
        raise RuntimeError("as the payload says")
    RECORDER.end()


_pools: list[asyncio.Task[Any]] = []


async def _pool() -> Any:
    if not _pools:
        _pools.append(asyncio.create_task(_make_pool()))
    return await _pools[0]


async def _make_pool() -> Any:
    import asyncpg  # noqa: PLC0415 - only this handler needs it

    # As Node's pool: what a borrower left behind is not looked for, which takes a round trip more.
    return await asyncpg.create_pool(URL, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=_leave)


async def _leave(_connection: Any) -> None:
    """Reset nothing."""


HANDLERS: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "noop": handle_noop,
    "latency": handle_latency,
    "wait": handle_wait,
    "sql": handle_sql,
    "failing": handle_failing,
}
#: The handler of this process.
handle = HANDLERS[TASK.get("handler", "noop")]


def cpu() -> float:
    """Give the seconds of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def new_payload() -> dict[str, Any]:
    """Give a payload that says when it was sent."""
    return {"n": 0, "t": time(), "fails": False, "pad": "p" * 40}


async def send_in_time(send: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """Send single jobs, a gap after one another, through the peer's own call."""
    await send(new_payload())  # connections, statements and caches are not what is measured
    await asyncio.sleep(1)
    due = perf_counter()
    for _ in range(TASK["count"]):
        due += TASK["gap"]
        await send(new_payload())
        await asyncio.sleep(max(due - perf_counter(), 0))


async def send_batches(send: Callable[[list[dict[str, Any]]], Awaitable[Any]]) -> None:
    """Send batches of jobs, a gap after one another; tells how far behind its time it came."""
    batch: int = TASK["batch"]
    await send([new_payload()])
    await asyncio.sleep(1)
    due, late = perf_counter(), 0.0
    for _ in range(TASK["count"] // batch):
        due += TASK["gap"]
        payload = new_payload()
        await send([payload] * batch)
        late = max(late, perf_counter() - due)
        await asyncio.sleep(max(due - perf_counter(), 0))
    say("sent", late=late)


def main(**verbs: Callable[[], Awaitable[None]]) -> None:
    """Run the verb that the harness names: setup, fill, work or send."""
    verb = sys.argv[1]

    async def run() -> None:
        await verbs[verb]()
        say("ok")

    if sys.platform == "win32":
        asyncio.run(run())
        return
    import uvloop  # noqa: PLC0415 - every Python peer has it: none is to be slower for want of it

    uvloop.run(run())
