"""What `howdah.enqueue` and `enqueue_many` cost beside bare INSERTs into the same table, and what wakes cost a crowd.

Each is measured in turns with what it is compared to, block by block, on the same server.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

from peers.drain import make_task, prepare
from peers.worker import working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "enqueue"
TITLE = "Enqueue, beside bare INSERTs into the same table"
ROUNDS = 1
PAYLOAD = json.dumps({"n": 1, "t": 1.5, "fails": False, "pad": "p" * 40})
CROWD = 32
BLOCKS = 40
PATIENCE = 60

ONE = "select howdah.enqueue('job', $1::jsonb)"
ONE_BARE = "insert into howdah.jobs (kind, payload) values ('job', $1::jsonb) returning id"
MANY = "select id from howdah.enqueue_many($1::jsonb)"
PAYLOADS = "select howdah.enqueue_payloads('job', $1::text[]::jsonb[])"
MANY_BARE = "insert into howdah.jobs (kind, payload) select 'job', x::jsonb from unnest($1::text[]) x returning id"
FIELDS = {
    "n": {"types": ["number"], "required": True},
    "t": {"types": ["number"], "required": True},
    "fails": {"types": ["boolean"], "required": True},
    "pad": {"types": ["string"], "required": False},
}


def takes(peer: Peer) -> bool:
    """Take Howdah alone: the ratios are to its own table."""
    return peer.name == "howdah"


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Measure one at a time, in bulk without a schema and with one, and from 32 connections beside a busy worker."""
    database = await prepare(bench, peer, 0)
    async with bench.server.connected(database) as connection:
        await _register(connection, {}, revision=1)  # as every kind is that a worker has
        one = bench.of(quick=500, standard=8_000)
        yield {
            "case": "one per transaction",
            **await _compare(connection, (ONE, PAYLOAD, 1), (ONE_BARE, PAYLOAD, 1), one),
        }
        jobs = json.dumps([{"kind": "job", "payload": json.loads(PAYLOAD)}] * 1000)
        many = bench.of(quick=40_000, standard=120_000)
        bare = (MANY_BARE, [PAYLOAD] * 1000, 1000)
        yield {"case": "enqueue_many, no schema", **await _compare(connection, (MANY, jobs, 1000), bare, many)}
        payloads = (PAYLOADS, [PAYLOAD] * 1000, 1000)
        yield {"case": "enqueue_payloads, no schema", **await _compare(connection, payloads, bare, many)}
        await _register(connection, FIELDS, revision=2)
        yield {"case": "enqueue_many, with a schema", **await _compare(connection, (MANY, jobs, 1000), bare, many)}
    await bench.server.drop(database)
    yield {"case": f"{CROWD} at once, worker busy", **await _crowd(bench, peer)}


async def _register(connection: asyncpg.Connection, fields: dict[str, object], *, revision: int) -> None:
    kinds = json.dumps([{"name": "job", "fields": fields}])
    await connection.execute("select howdah.register($1::text::jsonb, $2)", kinds, revision)


async def _compare(
    connection: asyncpg.Connection,
    ours: tuple[str, object, int],
    bare: tuple[str, object, int],
    count: int,
) -> Figures:
    """Run both in short blocks, in turns; gives jobs per second of the median block, and the median of what neighbours are to one another.

    The machine's speed moves from second to second: neighbours share it.
    """
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    block = count // BLOCKS // ours[2] * ours[2]
    for number in range(BLOCKS + 1):
        pairs = (("ours", ours), ("bare", bare)) if number % 2 else (("bare", bare), ("ours", ours))
        for name, (text, argument, size) in pairs:
            statement = await connection.prepare(text)
            await statement.fetch(argument)  # the truncate before it took all plans away
            began = time.perf_counter()
            for _ in range(block // size):
                await statement.fetch(argument)
            if number:  # the first block only warms up
                seconds[name].append(time.perf_counter() - began)
        await connection.execute("truncate howdah.jobs")
    rates = {name: block / statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(theirs / mine for mine, theirs in zip(seconds["ours"], seconds["bare"], strict=True))
    return {"per_second": rates["ours"], "bare": rates["bare"], "ratio": ratio}


async def _crowd(bench: Bench, peer: Peer) -> Figures:
    """Let 32 connections enqueue beside a worker; in turns with the same where every NOTIFY is taken out of the schema."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(bench.of(quick=1, standard=4)):
        for silent in (False, True) if number % 2 else (True, False):
            rates[silent].append(await _crowd_once(bench, peer, silent=silent))
    told, untold = (statistics.median(rates[silent]) for silent in (False, True))
    return {"per_second": told, "bare": untold, "ratio": told / untold}


async def _crowd_once(bench: Bench, peer: Peer, *, silent: bool) -> float:
    database = await prepare(bench, peer, 0)
    if silent:
        async with bench.server.connected(database) as connection:
            await _take_out_notify(connection)
    installed = bench.installed[peer.name]
    task = make_task(bench, peer, database, count=10**9, seconds=3600)
    async with working(installed, task) as worker:
        crowd = {**task, "connections": CROWD, "seconds": bench.of(quick=3, standard=6)}
        async with working(installed, crowd, "crowd") as senders:
            await worker.word("first", PATIENCE)
            sent = await senders.word("sent", PATIENCE)
    await bench.server.drop(database)
    return float(sent["rate"])


async def _take_out_notify(connection: asyncpg.Connection) -> None:
    """Replace each pg_notify in the schema's functions by one that does nothing."""
    await connection.execute(
        "create function howdah.no_notify(text, text) returns void language sql immutable as 'select null::void'"
    )
    definitions = await connection.fetch(
        "select pg_get_functiondef(oid) as text from pg_proc"
        " where pronamespace = 'howdah'::regnamespace and prosrc like '%pg_notify(%'"
    )
    for definition in definitions:
        await connection.execute(definition["text"].replace("pg_notify(", "howdah.no_notify("))
