"""A wire that holds every message for longer than a heartbeat's interval, or for longer than the ttl."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.eventually import aeventually
from support.facts import end_of, has_ended
from support.jobs import enqueue, enqueue_many
from support.proxy import proxied
from support.wire_work import handlers, work_through

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 2
#: After the end of the delay: what is on its way arrives or is given up, a try to connect gets two seconds, the pause after it one.
HEALED = 8.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("held", "names"),
    [
        pytest.param(held, names, id=f"{held} of the ttl, {what}", marks=[
            pytest.mark.fault("Connections", f"each message of {what} is held for {held} of the ttl", promise)])
        for held, names, what, promise in (
            (0.4, (), "all", "jobs let go in time and run once; works on when it ends"),
            (0.4, ("beat",), "beat", "jobs let go in time and run once; works on when it ends"),
            (1.2, (), "all", "jobs let go in time and run once; works on when it ends"),
            (1.2, ("claim", "ack"), "claim and ack", "all jobs run once; works on when it ends"),
        )
    ],
)  # fmt: skip
async def test_over_a_slow_wire_jobs_run_once_and_when_it_is_fast_again_the_worker_works_on(
    held: float,
    names: tuple[str, ...],
    daemon: StartDaemon,
    connection: asyncpg.Connection,
    database: Database,
    figures: Figures,
) -> None:
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('pair', 2)")
    async with proxied(database.url) as wire:
        slow = await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:20")
        fast = await daemon(handlers(database), lease_ttl=TTL, queues="default:20")
        jobs = [{"kind": "innocent", "payload": {"seconds": 2 * TTL}}] * 2 + [{"kind": "innocent"}] * 200
        ids = [row["id"] for row in await enqueue_many(connection, *jobs)]
        await aeventually(lambda: checker.starts(*ids))
        wire.hold(held * TTL, *names)
        figures.faults = 1
        ids += [row["id"] for row in await enqueue_many(connection, *jobs)]
        if not names or "beat" in names:  # who cannot beat lets go, and the other takes over meanwhile
            await aeventually(lambda: has_ended(connection, *ids), timeout=30 * TTL)
        else:
            await asyncio.sleep(3 * TTL)  # the delay itself; what runs here cannot be acked before its end
        wire.heal()
        healed = time.monotonic()
        await aeventually(lambda: has_ended(connection, *ids), timeout=HEALED + 3 * TTL)
        await aeventually(lambda: is_well(slow), timeout=HEALED)
        fast.signal(signal.SIGTSTP)
        await aeventually(lambda: fast.log_events("claims no more"))
        ended = await end_of(connection, await enqueue(connection, "innocent"), timeout=HEALED)
        assert ended["worker"] != fast.worker
        figures.recovered(time.monotonic() - healed)
        assert await fast.stop() == 0
        await work_through(connection, figures, HEALED)
        assert slow.process.poll() is None
        await checker.check(figures=figures)
        assert await slow.stop() == 0


async def is_well(worker: Daemon) -> bool:
    return await worker.metric("howdah_heartbeat_age_seconds") < TTL / 2 and (await worker.get("/readyz"))[0] == 200
