"""Everything that is said vanishes, for a while or for good: who starts waits, who drains leaves, who asks is told."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.checker import Checker
from support.daemon import howdah
from support.eventually import aeventually
from support.facts import end_of, has_ended, is_empty
from support.jobs import enqueue, enqueue_many
from support.proxy import proxied
from support.wire_work import handlers, work_through

from howdah.client import Client
from howdah.database import CONNECT_TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 2
#: A try to connect gets two seconds at such a ttl, and the pause after it is a second at most.
HEALED = 2.0 + 1.0 + TTL + 1.0
#: What a drain may take beyond its timeout, in seconds: the claims on their way (3 each), cancelled handlers (3), acks (5), reports,
#: lifespans and words of parting (2, 5, 9).
BEYOND = 30.0


@pytest.mark.long
@pytest.mark.fault(
    "Connections",
    "everything vanishes for two ttl, also what is said on new connections",
    "jobs let go in time, then run once",
)
async def test_after_a_blackhole_work_goes_on_without_a_restart(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('pair', 2)")
    async with proxied(database.url) as wire:
        lonely = await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:20", drain_timeout=1)
        other = await daemon(handlers(database), lease_ttl=TTL, queues="default:20")
        other.signal(signal.SIGTSTP)
        await aeventually(lambda: other.log_events("claims no more"))
        jobs = [{"kind": "innocent", "payload": {"seconds": 1.5 * TTL}}] * 2
        held = [row["id"] for row in await enqueue_many(connection, *jobs)]
        await aeventually(lambda: all_started(checker, held))
        wire.blackhole()
        other.signal(signal.SIGCONT)
        figures.faults = 1
        # Nobody else has a job before the worker that cannot beat has let it go: the checker sees it.
        await aeventually(lambda: lonely.log_events("no beat arrived for long, releasing all jobs"), timeout=TTL + 1)
        await aeventually(lambda: has_ended(connection, *held), timeout=10 * TTL)  # suspects run one by one
        wire.heal()
        healed = time.monotonic()
        other.signal(signal.SIGTSTP)
        assert (await end_of(connection, await enqueue(connection, "innocent"), timeout=HEALED))[
            "worker"
        ] != other.worker
        figures.recovered(time.monotonic() - healed)
        await work_through(connection, figures, HEALED)
        assert lonely.process.poll() is None
        await checker.check(figures=figures)

        # And now for good, in the middle of a drain.
        other.signal(signal.SIGTSTP)
        jobs = [{"kind": "innocent", "payload": {"seconds": 60}}] * 3 + [
            {"kind": "effect", "payload": {"seconds": 0.5}}
        ] * 3
        held = [row["id"] for row in await enqueue_many(connection, *jobs)]
        await aeventually(lambda: all_started(checker, held))
        wire.blackhole()
        lonely.terminate()
        began = time.monotonic()
        assert await lonely.wait(timeout=1 + BEYOND) in {0, 75}, lonely.output()
        figures.recovered(time.monotonic() - began)
        await connection.execute("update howdah.jobs set payload = '{}' where kind = 'innocent'")
        other.signal(signal.SIGCONT)
        await aeventually(lambda: is_empty(connection), timeout=5 * TTL)
        await checker.check(figures=figures)


@pytest.mark.fault("Connections", "everything vanishes at the start", "the start waits, and SIGTERM ends it at once")
async def test_a_start_into_a_blackhole_waits_and_can_be_ended(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    async with proxied(database.url) as wire:
        wire.blackhole()
        first = await daemon(url=wire.url, lease_ttl=TTL, ready=False)
        second = await daemon(url=wire.url, lease_ttl=TTL, ready=False)
        for worker in (first, second):
            await aeventually(lambda worker=worker: worker.log_events("database is away, waiting"), timeout=15)
        began = time.monotonic()
        assert await first.stop() == 0, first.output()
        assert time.monotonic() - began < 4
        wire.heal()
        await second.ready(HEALED + 2)
        await end_of(connection, await enqueue(connection))
        assert await second.stop() == 0


@pytest.mark.long
@pytest.mark.fault(
    "Connections", "everything vanishes before a command", "it says so within 10 s and some, and exits 1"
)
async def test_commands_say_within_seconds_that_nobody_answers(database: Database, tmp_path: Path) -> None:
    async with proxied(database.url) as wire:
        wire.blackhole()
        (tmp_path / "handlers.py").write_text("")
        began = time.monotonic()
        done = await asyncio.gather(
            *(
                asyncio.to_thread(howdah, *command, folder=tmp_path, HOWDAH_DATABASE_URL=wire.url, timeout=60)
                for command in (("check",), ("enqueue", "work"), ("doctor",), ("jobs",))
            )
        )
        took = time.monotonic() - began
        for one in done:
            assert one.returncode == 1, (one.args, one.returncode, one.stdout, one.stderr)
            assert "answer" in one.stdout + one.stderr, (one.args, one.stdout, one.stderr)
            assert "Traceback" not in one.stderr, one.stderr
        assert took < CONNECT_TIMEOUT + 20, took


@pytest.mark.fault(
    "Connections", "the wire falls silent under a client's call", "the call can be cancelled, and the next one works"
)
async def test_a_client_s_call_can_be_cancelled_and_the_next_one_works(database: Database) -> None:
    async with proxied(database.url) as wire, Client(wire.url) as client:
        job = (await client.enqueue("work")).id
        calls = (
            lambda: client.enqueue("work"),
            lambda: client.explain(job),
            lambda: client.wait(job),
            lambda: in_transaction(client),
        )
        for call in calls:
            wire.cut()
            await aeventually(lambda: client.stats())  # on a new connection, the next to be lent
            wire.half_open()
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await call()
            # Two seconds are given for a proper end of what was asked.
            assert time.monotonic() - began < 0.2 + 2.5
        wire.cut()
        await aeventually(lambda: client.stats())
        assert (await client.enqueue("work")).id > job


async def in_transaction(client: Client) -> None:
    async with client.transaction() as connection:
        await connection.execute("select 1")


@pytest.mark.long
@pytest.mark.fault("Connections", "the handlers' pool falls silent", "plain jobs run on, at once")
async def test_a_silent_pool_of_the_handlers_stops_no_plain_job(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with proxied(database.url) as wire:
        worker = await daemon(
            handlers(database), pool_database_url=wire.url, pool_size=3, lease_ttl=TTL, queues="default:10"
        )
        effects = [{"kind": "effect"}] * 6
        await work_through(connection, figures, 5, effects)
        wire.blackhole()
        figures.faults, figures.recovery = 1, None
        stuck = [row["id"] for row in await enqueue_many(connection, *effects)]
        for _ in range(5):
            ids = [row["id"] for row in await enqueue_many(connection, *[{"kind": "innocent"}] * 10)]
            await aeventually(lambda ids=ids: has_ended(connection, *ids), timeout=1)
        assert not await has_ended(connection, *stuck)
        wire.heal()
        healed = time.monotonic()
        await aeventually(lambda: has_ended(connection, *stuck), timeout=CONNECT_TIMEOUT + 5)
        figures.recovered(time.monotonic() - healed)
        await checker.check(figures=figures)
        assert await worker.stop() == 0


@pytest.mark.long
@pytest.mark.fault(
    "Connections", "LISTEN falls silent", "jobs are found by polling, howdah_listener_up 0 until it heals"
)
async def test_a_silent_listener_means_polling_until_it_heals(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    async with proxied(database.url) as wire:
        worker = await daemon(listen_database_url=wire.url, lease_ttl=1, poll_interval=60)
        await aeventually(lambda: listener_is(worker, 1))
        wire.blackhole()
        await aeventually(lambda: listener_is(worker, 0), timeout=2 + 1 + 2)
        for _ in range(5):  # polls are 0.2 s apart at most
            began = time.monotonic()
            await end_of(connection, await enqueue(connection), timeout=1)
            figures.recovered(time.monotonic() - began)
        assert await listener_is(worker, 0)
        wire.heal()
        await aeventually(lambda: listener_is(worker, 1), timeout=HEALED)
        await end_of(connection, await enqueue(connection), timeout=1)
        assert await worker.stop() == 0


async def listener_is(worker: Daemon, value: float) -> bool:
    return await worker.metric("howdah_listener_up") == value


async def all_started(checker: Checker, jobs: list[int]) -> bool:
    return len(await checker.starts(*jobs)) >= len(jobs)
