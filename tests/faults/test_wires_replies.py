"""A statement is done and its answer never comes, or the wire breaks in the middle of it: it counts once, whichever it was."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import add_worker, claim, enqueue
from support.proxy import Trap, proxied
from support.wire_work import handlers, mix, work_through

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

TTL = 2
#: Work goes on within so many seconds: a call waits for half of the ttl, a commit of a handler's for the whole, its connection for
#: two seconds more; and the server keeps the locks of a transaction whose client has vanished for a second.
WITHIN = TTL + 2 + 4.0

#: Done, and the answer lost.
REPLIES = {
    "a claim": Trap("howdah.claim_ready", "reply"),
    "a claim of limited jobs": Trap("howdah.claim_limited", "reply"),
    "an ack": Trap("howdah.ack_completed", "reply"),
    "a handler's complete": Trap("howdah.complete", "reply", "handler"),
    "a handler's COMMIT": Trap("COMMIT", "reply", "handler"),
    "an ack_with": Trap("howdah.ack_with", "reply"),
    "a kept step": Trap("howdah.keep_step", "reply"),
    "a start": Trap("howdah.note_started", "reply", "spare"),
    "jobs made ready": Trap("p.promoted", "reply"),
    "a heartbeat": Trap("worker_beat", "reply"),
}
#: Broken off in the middle.
MIDDLES = {
    "a claim's rows": Trap("howdah.claim_ready", "rows", least=3),
    "an ack's arguments": Trap("howdah.ack_completed", "arguments"),
    "an ack, before the word that commits it": Trap("howdah.ack_completed", "sync"),
    "a claim, before the word that commits it": Trap("howdah.claim_ready", "sync"),
    "a handler's complete, before the word that ends it": Trap("howdah.complete", "sync"),
    "a chained job's arguments": Trap("howdah.ack_with", "arguments"),
}


def case(of: str, traps: dict[str, Trap], *, silent: bool, promise: str) -> object:
    fault = f"{of}, the wire {'falls silent' if silent else 'is reset'}: {', '.join(traps)}"
    marks = [pytest.mark.fault("Connections", fault, promise), *([pytest.mark.long] if silent else [])]
    return pytest.param(traps, silent, marks=marks, id=f"{of}, {'silence' if silent else 'reset'}")


@pytest.mark.parametrize(
    ("traps", "silent"),
    [
        case("reply lost", REPLIES, silent=False, promise="each counts once, work goes on"),
        case("reply lost", REPLIES, silent=True, promise="each counts once, work goes on within a ttl and some seconds"),
        case("broken in the middle", MIDDLES, silent=False, promise="each counts once, work goes on"),
        case("broken in the middle", MIDDLES, silent=True, promise="each counts once, work goes on within a ttl and some seconds"),
    ],
)  # fmt: skip
async def test_what_is_broken_off_counts_once_whether_it_was_done_or_not(
    traps: dict[str, Trap],
    silent: bool,  # noqa: FBT001
    daemon: StartDaemon,
    connection: asyncpg.Connection,
    database: Database,
    figures: Figures,
) -> None:
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('pair', 2)")
    async with proxied(database.url) as wire:
        worker = await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:30")
        await work_through(connection, figures, 5)
        figures.recovery = None
        for name, trap in traps.items():
            before = wire.sprung
            wire.traps = [dataclasses.replace(trap, silent=silent)]
            try:
                await work_through(connection, figures, WITHIN)
                # Heartbeats, and what is made ready, come by themselves.
                await aeventually(lambda before=before: wire.sprung > before, timeout=TTL)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}\n{worker.output()[-3000:]}") from error
            wire.traps = []
        figures.faults = wire.sprung
        await work_through(connection, figures, WITHIN)
        assert worker.process.poll() is None
        for event in ("taken for dead, entering again", "no beat arrived for long, releasing all jobs", "lost lease"):
            assert not worker.log_events(event), worker.log_events(event)
        await checker.check(figures=figures)
        assert await worker.stop() == 0


@pytest.mark.fault("Connections", "the reply to a rescue is lost", "the dead worker's jobs run elsewhere, once")
@pytest.mark.parametrize(
    "silent", [pytest.param(False, id="reset"), pytest.param(True, id="silence", marks=pytest.mark.long)]
)
async def test_a_rescue_whose_reply_is_lost_has_happened_and_its_jobs_run_once(
    silent: bool,  # noqa: FBT001
    daemon: StartDaemon,
    connection: asyncpg.Connection,
    database: Database,
    figures: Figures,
) -> None:
    checker = await Checker(connection).install()
    gone = await add_worker(connection, kinds=["innocent"], ttl=1)
    jobs = [await enqueue(connection, "innocent") for _ in range(3)]
    await claim(connection, gone, kinds=["innocent"], lease=secrets.randbits(62), count=3)
    async with proxied(database.url) as wire:
        wire.traps = [Trap("howdah.rescue(", "reply", silent=silent)]
        worker = await daemon(handlers(database), url=wire.url, lease_ttl=1, queues="default:30")
        await aeventually(lambda: wire.sprung)
        for job in jobs:
            ended = await end_of(connection, job, timeout=WITHIN)
            assert (ended["state"], ended["attempt"], ended["crashes"]) == ("completed", 1, 0)
        figures.faults = wire.sprung
        await checker.check(figures=figures)
        assert await worker.stop() == 0


@pytest.mark.fault(
    "Connections",
    "a claim reaches the server after its sender has hung up and given it back",
    "its jobs are given back",
)
async def test_a_claim_that_comes_late_leaves_no_job_with_nobody_who_runs_it(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with proxied(database.url) as wire:
        worker = await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:3")
        await work_through(connection, figures, 5, mix())
        # More jobs than slots, so that there is something left for the claim that comes late.
        wire.traps = [Trap("howdah.claim_ready", "late", seconds=0.7)]
        await aeventually(lambda: wire.sprung)
        figures.recovery = None
        await work_through(connection, figures, 15, [{"kind": "innocent", "payload": {"seconds": 0.3}}] * 40)
        assert worker.log_events("gave back a claim that came late")
        figures.faults = wire.sprung
        await checker.check(figures=figures)
        assert await worker.stop() == 0
