"""What the database knows of the session's jobs, asked for a few times a second."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.database import connected
from howdah.queries import read_query

if TYPE_CHECKING:
    from datetime import datetime

#: Seconds between two looks, and the share of the time that looking may take: it reads whole tables.
INTERVAL, SHARE = 0.25, 20
#: How many live jobs and ended ones are kept.
LIVE, ENDED = 50, 100
#: A transaction may come into sight so much later than its clock says, in seconds.
LATE = 5

Row = dict[str, Any]


@dataclass
class Facts:
    """The newest facts. `ended` is in order of time; `counts` are of what ended since the session began."""

    queues: list[Row] = field(default_factory=list)
    live: list[Row] = field(default_factory=list)
    ended: deque[Row] = field(default_factory=lambda: deque(maxlen=ENDED))
    counts: dict[str, int] = field(default_factory=dict)
    kinds: list[tuple[str, Any]] = field(default_factory=list)
    away: str | None = None


class Reader:
    """Keeps `facts` fresh. `new` are the jobs that ended since it was last emptied; whoever shows them empties it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sql = {name: read_query(f"dev_{name}") for name in ("queues", "live", "ended", "kinds")}
        self._seen: dict[int, datetime] = {}
        self._since: datetime | None = None
        self.facts = Facts()
        self.new: list[Row] = []
        #: The worker whose kinds are asked for.
        self.worker: int | None = None
        self._told: int | None = None

    async def run(self) -> None:
        """Ask until cancelled; a database that is away is a fact, too."""
        while True:
            try:
                async with connected(self._url, name="dev") as connection:
                    self.facts.away = None
                    await self._look(connection)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                self.facts.away = str(error) or type(error).__name__
            await asyncio.sleep(INTERVAL)

    async def _look(self, connection: asyncpg.Connection) -> None:
        clock = asyncio.get_running_loop().time
        if self._since is None:
            self._since = await connection.fetchval("select clock_timestamp()")
            # What ended before the session is shown, and not counted.
            before = await connection.fetch(self._sql["ended"], self._since - timedelta(days=1), ENDED)
            self._take(before, counted=False)
        while True:
            began = clock()
            self.facts.queues = [dict(row) for row in await connection.fetch(self._sql["queues"])]
            self.facts.live = [dict(row) for row in await connection.fetch(self._sql["live"], LIVE)]
            self._take(await connection.fetch(self._sql["ended"], self._since - timedelta(seconds=LATE), 10_000))
            if self.worker is not None and self.worker != self._told:
                kinds = await connection.fetch(self._sql["kinds"], self.worker)
                self.facts.kinds = [(row["name"], row["schema"]) for row in kinds]
                self._told = self.worker
            await asyncio.sleep(max(INTERVAL, (clock() - began) * SHARE))

    def _take(self, rows: list[asyncpg.Record], *, counted: bool = True) -> None:
        """Take in what has ended and was not seen before."""
        for row in rows:
            if row["id"] in self._seen:
                continue
            self._seen[row["id"]] = row["finished_at"]
            self.facts.ended.append(dict(row))
            if counted:
                self.new.append(dict(row))
                self.facts.counts[row["state"]] = self.facts.counts.get(row["state"], 0) + 1
        if rows and counted and self._since is not None:
            self._since = max(self._since, rows[-1]["finished_at"])
            horizon = self._since - timedelta(seconds=2 * LATE)
            self._seen = {job: ended for job, ended in self._seen.items() if ended > horizon}


def example(schema: Any) -> str:
    """Make a payload that the schema takes, as far as its required fields tell."""
    payload: dict[str, Any] = {}
    if isinstance(schema, dict):
        for name in schema.get("required", ()):
            payload[name] = _value(name, schema.get("properties", {}).get(name, {}), schema.get("$defs", {}))
    return json.dumps(payload, ensure_ascii=False)


def _value(name: str, part: dict[str, Any], definitions: dict[str, Any]) -> Any:
    for choice in ("default", "const"):
        if choice in part:
            return part[choice]
    if part.get("examples") or part.get("enum"):
        return (part.get("examples") or part["enum"])[0]
    if "$ref" in part:
        inner = definitions.get(part["$ref"].rpartition("/")[2], {})
        return (
            json.loads(example({**inner, "$defs": definitions})) if "properties" in inner else _value(name, inner, {})
        )
    if "anyOf" in part:
        return _value(name, part["anyOf"][0], definitions)
    if "format" in part:
        with suppress(KeyError):
            return _FORMATS[part["format"]]
    plain = {
        "string": "you" if name == "name" else name,
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "array": [],
        "object": {},
    }
    return plain.get(str(part.get("type")))


_FORMATS = {
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "you@example.org",
    "uri": "https://example.org/",
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
}
