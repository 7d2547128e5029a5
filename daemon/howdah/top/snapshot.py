"""What `howdah top` shows, read in a few cheap statements."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from howdah.queries import read_query

if TYPE_CHECKING:
    import asyncpg

#: Rates that are remembered for the graph.
HISTORY = 240
#: Running jobs that are asked for: more than any screen shows.
JOBS = 60


@dataclass(slots=True)
class Flow:
    """How many jobs came and went a second, the newest last. The server tells its counts about once a second."""

    come: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    gone: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _last: tuple[int, int, float] | None = None

    def add(self, come: int, gone: int) -> None:
        """Take the totals as they are now."""
        now = monotonic()
        if self._last is not None:
            seconds = max(now - self._last[2], 0.001)
            self.come.append(max(come - self._last[0], 0) / seconds)
            self.gone.append(max(gone - self._last[1], 0) / seconds)
        self._last = (come, gone, now)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the whole."""

    place: str
    at: Any
    depth: list[Any]
    workers: list[Any]
    running: list[Any]
    paused: set[str]
    flow: Flow


async def take(connection: asyncpg.Connection, place: str, flow: Flow) -> Snapshot:
    """Read one moment."""
    counts = await connection.fetchrow(read_query("flow", "top"))
    if counts is None:
        raise AssertionError("the statistics have a row for every table")
    flow.add(counts["come"], counts["gone"])
    return Snapshot(
        place=place,
        at=counts["at"],
        depth=await connection.fetch(read_query("depth")),
        workers=await connection.fetch(read_query("workers", "top")),
        running=await connection.fetch(read_query("running", "top"), JOBS),
        paused={row["name"] for row in await connection.fetch(read_query("paused", "top"))},
        flow=flow,
    )
