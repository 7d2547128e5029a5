"""The faults: every few seconds one, in rounds that have each of them once in an order of chance, with the time until it was healed."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg
from soak.workers import TTL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from soak.stage import Stage
    from soak.workers import Fleet, Worker
    from support.proxy import Proxy

#: Seconds between the beginnings of two faults.
PAUSE = (5.0, 15.0)
FREEZE, SNAPSHOT, DEAF_TO_ALL, NOISE = 1.5 * TTL, 60.0, 3.0, 3.0
#: A job that does nothing is through within so many seconds when work flows as it should.
FLOWS = 1.0
_PATIENCE, _LOOK = 120.0, 0.1


@dataclass
class Fault:
    """One fault: when it began and ended, in seconds of the run, and what it took to get over it."""

    name: str
    at: float
    until: float = 0.0
    #: Seconds from its end until a new job was through within a second.
    flowing: float | None = None
    #: Jobs that the victim held, and the seconds until the others had them.
    held: int = 0
    back: float | None = None


class Faults:
    """Injects them until told to stop; `log` is what was done."""

    def __init__(self, stage: Stage, fleet: Fleet, wire: Proxy, *, seed: int, began: float) -> None:
        self._stage = stage
        self._fleet = fleet
        self._wire = wire
        self._random = random.Random(seed)  # noqa: S311 - faults, not a cipher
        self._began = began
        self._watches: set[asyncio.Task[None]] = set()
        self._probes = 0
        self.log: list[Fault] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Go on, round after round."""
        faults: list[Callable[[], Awaitable[None]]] = []
        while not stop.is_set():
            if not faults:
                faults = [
                    self._kill,
                    self._deploy,
                    self._freeze,
                    self._cut,
                    self._refuse,
                    self._lose_answers,
                    self._terminate,
                    self._crash_server,
                    self._hold_snapshot,
                ]
                self._random.shuffle(faults)
            pause = self._random.uniform(*PAUSE)
            before = monotonic()
            await faults.pop()()
            rest = max(pause - (monotonic() - before), 1.0)
            try:
                await asyncio.wait_for(stop.wait(), rest)
            except TimeoutError:
                continue

    async def settled(self) -> None:
        """Wait until the last ones are over."""
        while self._watches:  # one may begin another
            await asyncio.gather(*self._watches, return_exceptions=True)

    # -- to workers

    async def _kill(self) -> None:
        victim = self._mortal()
        fault = self._begin("kill -9")
        process = victim.life.process
        # Frozen first, so that what it holds stands still while it is read.
        process.send_signal(signal.SIGSTOP)
        held = await self._held_by(process.pid)
        self._fleet.end(victim, signal.SIGKILL)
        self._end(fault, held)

    async def _deploy(self) -> None:
        victim = self._mortal()
        fault = self._begin("SIGTERM, then started anew")
        process = self._fleet.end(victim, signal.SIGTERM).process
        while process.poll() is None:
            await asyncio.sleep(_LOOK)
        self._end(fault)

    async def _freeze(self) -> None:
        victim = self._random.choice(self._fleet.workers)
        fault = self._begin(f"SIGSTOP for {FREEZE:g} s")
        process = victim.life.process
        process.send_signal(signal.SIGSTOP)
        held = await self._held_by(process.pid)
        self._watch(fault, held)  # from its beginning: the others do not wait for its end
        await asyncio.sleep(FREEZE)
        process.send_signal(signal.SIGCONT)
        fault.until = self._now()

    # -- to wires

    async def _cut(self) -> None:
        fault = self._begin("all wires cut")
        self._wire.cut()
        self._end(fault)

    async def _refuse(self) -> None:
        fault = self._begin(f"nobody gets through for {DEAF_TO_ALL:g} s")
        self._wire.refusing = True
        self._wire.cut()
        await asyncio.sleep(DEAF_TO_ALL)
        self._wire.refusing = False
        self._end(fault)

    async def _lose_answers(self) -> None:
        fault = self._begin(f"answers lost for {NOISE:g} s")
        self._wire.lose_answers = 0.02
        await asyncio.sleep(NOISE)
        self._wire.lose_answers = 0.0
        self._end(fault)

    # -- to the server

    async def _terminate(self) -> None:
        fault = self._begin("all backends terminated")
        connection = await self._stage.connect()
        try:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'howdah%'"
            )
        finally:
            connection.terminate()
        self._end(fault)

    async def _crash_server(self) -> None:
        fault = self._begin("server crashed, and recovered")
        await self._stage.crash()
        self._end(fault)

    async def _hold_snapshot(self) -> None:
        fault = self._begin(f"a snapshot held for {SNAPSHOT:g} s")
        self._spawn(self._keep_snapshot(fault))

    async def _keep_snapshot(self, fault: Fault) -> None:
        """Hold it beside the other faults, one of which may end it."""
        try:
            connection = await self._stage.connect()
            try:
                await connection.execute("begin isolation level repeatable read")
                await connection.fetchval("select count(*) from soak.batches")
                for _ in range(int(SNAPSHOT)):
                    await asyncio.sleep(1)
                    await connection.fetchval("select 1")
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pass  # the server crashed meanwhile
        self._end(fault)

    # -- what comes of them

    def _begin(self, name: str) -> Fault:
        fault = Fault(name, self._now())
        self.log.append(fault)
        return fault

    def _end(self, fault: Fault, held: tuple[int, list[int]] | None = None) -> None:
        fault.until = self._now()
        self._watch(fault, held)

    def _watch(self, fault: Fault, held: tuple[int, list[int]] | None = None) -> None:
        self._spawn(self._see_it_healed(fault, held))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _see_it_healed(self, fault: Fault, held: tuple[int, list[int]] | None) -> None:
        """Send a job through again and again until one is through in time; wait until the victim's jobs are others'."""
        began = monotonic()
        if held is not None:
            fault.held = len(held[1])
        while monotonic() - began < _PATIENCE and (fault.flowing is None or (held is not None and fault.back is None)):
            try:
                connection = await self._stage.connect()
                try:
                    if fault.flowing is None and (took := await self._send_one(connection)) < FLOWS:
                        fault.flowing = monotonic() - began - took
                    if held is not None and fault.back is None and await _has_lost(connection, *held):
                        fault.back = monotonic() - began
                finally:
                    connection.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass  # the next fault, or the same
            await asyncio.sleep(_LOOK)

    async def _send_one(self, connection: asyncpg.Connection) -> float:
        began = monotonic()
        self._probes += 1  # in the books like all others, under numbers that the load does not use
        await connection.execute("select soak.enqueue($1, $2)", -self._probes, '[{"kind": "soak_nothing"}]')
        job = await connection.fetchval("select lower(ids) from soak.batches where id = $1", -self._probes)
        while not await connection.fetchval("select exists (select from howdah.job_history where id = $1)", job):
            if monotonic() - began > _PATIENCE:
                break
            await asyncio.sleep(0.02)
        return monotonic() - began

    async def _held_by(self, pid: int) -> tuple[int, list[int]] | None:
        """Give a frozen worker's id and the jobs that it holds, once the server has done what it had sent."""
        try:
            connection = await self._stage.connect()
            try:
                worker = await connection.fetchval(
                    "select id from howdah.workers where split_part(name, ':', -1) = $1 order by id desc limit 1",
                    str(pid),
                )
                if worker is None:
                    return None
                await asyncio.sleep(0.2)
                rows = await connection.fetch("select id from howdah.jobs where leased_by = $1", worker)
                return worker, [row["id"] for row in rows]
            finally:
                connection.terminate()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    def _mortal(self) -> Worker:
        alive = [w for w in self._fleet.workers if not w.elder and w.life.process.poll() is None]
        return self._random.choice(alive or [w for w in self._fleet.workers if not w.elder])

    def _now(self) -> float:
        return monotonic() - self._began


async def _has_lost(connection: asyncpg.Connection, worker: int, jobs: list[int]) -> bool:
    """Tell whether none of these jobs is that worker's any more."""
    lost: bool = await connection.fetchval(
        "select not exists (select from howdah.jobs where id = any ($1) and leased_by = $2)", jobs, worker
    )
    return lost
