"""The load: a steady stream of mixed jobs, in small transactions, made up for when the server was away."""

from __future__ import annotations

import asyncio
import json
import random
from time import monotonic
from typing import Any

import asyncpg

#: Seconds between transactions, and how much faster than the rate it may go to make up for a pause.
STEP, CATCH_UP = 0.1, 1.5
#: Of a hundred jobs so many are of each kind; the rest does nothing.
SHARES = {"soak_effect": 3, "soak_flaky": 2, "soak_keyed": 1, "soak_limited": 2, "soak_sleeping": 1}
_KEYS = 2_000
_PATIENCE = 0.2


def job(n: int, choice: random.Random) -> dict[str, Any]:
    """Make one job of the mix."""
    [kind] = choice.choices([*SHARES, "soak_nothing"], [*SHARES.values(), 100 - sum(SHARES.values())])
    made: dict[str, Any] = {"kind": kind, "payload": {"n": n}}
    match kind:
        case "soak_flaky":
            made["payload"]["failures"] = choice.choice((0, 1, 1, 2))
        case "soak_keyed":
            made |= {"unique_key": f"key {choice.randrange(_KEYS)}", "delay": f"{choice.randint(1, 5)} seconds"}
        case "soak_limited":
            made["limits"] = ["soak"]
        case "soak_sleeping":
            made["payload"]["seconds"] = round(choice.uniform(0.5, 1.5), 2)
    return made


class Load:
    """Enqueues `rate` jobs a second through one connection until it is told to stop."""

    def __init__(self, url: str, *, seed: int) -> None:
        self._url = url
        self._choice = random.Random(seed)  # noqa: S311 - a load, not a cipher
        self._connection: asyncpg.Connection | None = None
        self._batch = 0
        self.asked = 0
        self.made = 0
        self.outages = 0

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Keep the rate, by the clock: what an outage has kept back comes after it."""
        began = monotonic()
        asked = 0
        most = int(rate * STEP * CATCH_UP)
        while not stop.is_set():
            tick = monotonic()
            count = min(int((tick - began) * rate) - asked, most)
            if count > 0:
                await self.enqueue(count)
                asked += count
            await asyncio.sleep(max(STEP - (monotonic() - tick), 0))

    async def enqueue(self, count: int) -> int:
        """Enqueue so many jobs in one transaction, however often the connection breaks; gives how many were made."""
        jobs = json.dumps([job(self.asked + n, self._choice) for n in range(count)])
        self.asked += count
        self._batch += 1
        while True:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await asyncpg.connect(self._url, timeout=5, command_timeout=60)
                made: int = await self._connection.fetchval("select soak.enqueue($1, $2)", self._batch, jobs)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                # Whether it was committed, the next try finds in soak.batches.
                self.outages += 1
                await self._hang_up()
                await asyncio.sleep(_PATIENCE)
            else:
                self.made += made
                return made

    async def close(self) -> None:
        """Hang up."""
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
