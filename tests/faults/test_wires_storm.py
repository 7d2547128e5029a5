"""A storm: every fault of wires at random, on any connection, under load, for two workers; the seed is printed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue_many
from support.proxy import Proxy, Trap, proxied
from support.wire_work import CONNECTIONS, handlers, mix, work_through

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

TTL = 2
#: After the storm everything that is left ends within so many seconds: a call waits for a few ttl at most, as it waited in the
#: storm, handlers have retries to make, and what a dead worker held is run one by one.
CALM = 40.0
SEED = int(os.environ.get("HOWDAH_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)

STATEMENTS = (
    "howdah.claim_ready", "howdah.claim_limited", "howdah.claim_suspect", "howdah.ack(", "howdah.ack_completed", "howdah.ack_with", "howdah.ack_fate",
    "howdah.complete", "COMMIT", "howdah.keep_step", "worker_beat", "howdah.rescue(", "j.lease = any", "p.promoted",
)  # fmt: skip


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(15, id="short"), pytest.param(120, id="long", marks=[pytest.mark.long, pytest.mark.timeout(400)])],
)
@pytest.mark.fault(
    "Connections",
    "all faults of wires at random, under load, two workers",
    "each job ends once, no worker needs a restart",
)
async def test_in_a_storm_each_job_ends_once_and_no_worker_needs_a_restart(
    seconds: int, daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    print(f"the storm's seed: HOWDAH_TEST_SEED={SEED}")  # noqa: T201  # whoever sees it fail needs it
    chance = random.Random(SEED)  # noqa: S311
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('pair', 2)")
    async with proxied(database.url) as first, proxied(database.url) as second:
        wires = (first, second)
        workers = [await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:30") for wire in wires]
        await work_through(connection, figures, 10)
        figures.recovery = None
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await enqueue_many(connection, *mix())
            wire = chance.choice(wires)
            figures.faults += await strike(wire, chance)
            if chance.random() < 0.5:
                wire.heal()
        for wire in wires:
            wire.heal()
        calm = time.monotonic()
        await aeventually(lambda: is_empty(connection), timeout=CALM)
        figures.recovered(time.monotonic() - calm)
        await checker.check(figures=figures)
        for worker in workers:
            assert worker.process.poll() is None, worker.output()
        await work_through(connection, figures, 10)
        for worker in workers:
            assert await worker.stop() == 0


async def strike(wire: Proxy, chance: random.Random) -> int:
    """Do one thing to a wire, for a moment where it takes one; gives the number of faults."""
    names = () if chance.random() < 0.15 else tuple(chance.sample(CONNECTIONS, chance.randint(1, 3)))
    moment = chance.uniform(0.05, 0.4)
    match chance.choice(("cut", "half-open", "trap", "trap", "trap", "hold", "refuse", "lose", "blackhole")):
        case "cut":
            wire.cut(*names)
        case "half-open":
            questions, answers = chance.choice(((True, True), (True, False), (False, True)))
            wire.half_open(*names, questions=questions, answers=answers)
        case "trap":
            what = chance.choice(("reply", "rows", "arguments", "sync", "late"))
            least = chance.choice((1, 3, 200))
            wire.traps.append(
                Trap(chance.choice(STATEMENTS), what, None, least, chance.random() < 0.5, chance.uniform(0, 2))
            )
        case "hold":
            wire.hold(chance.uniform(0, TTL * 0.7), *names)
            moment *= 3
        case "refuse":
            wire.refusing = True
            wire.cut()
        case "lose":
            wire.lose_answers, wire.lose_questions = 0.05, 0.05
        case "blackhole":
            if chance.random() < 0.3:
                wire.blackhole()
    await asyncio.sleep(moment)
    # A storm that never lets anybody through would try nothing: what keeps all of them out lasts for a moment.
    wire.refusing = wire.swallowing = False
    wire.lose_answers = wire.lose_questions = 0.0
    return 1
