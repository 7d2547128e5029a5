"""The port under garbage, slow and half requests, by the hundred: it answers whoever asks properly, and the jobs go on."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

#: The bound of endpoint.py, and what a worker has open besides.
CONNECTIONS, OWN_FILES = 100, 60
GARBAGE = (
    b"\x00" * 4096,
    b"GET /metrics\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + b"z" * 1_000_000,
    b"GET /stats HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n" + b"z" * 100_000,
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b'GET /%00%0d%0aevil:%20log HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[31m"\r\n\r\n',
    b"GET http://[::1]:99999999/ HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"\r\n" * 50_000,
)  # fmt: skip


async def throw(worker: Daemon, data: bytes) -> bytes:
    """Send bytes and give what comes back, if anything does within a moment."""
    reader, writer = await dial(worker)
    try:
        writer.write(data)
        async with asyncio.timeout(3):
            await writer.drain()
            return await reader.read(65536)
    except (OSError, TimeoutError):
        return b""
    finally:
        writer.transport.abort()


async def dial(worker: Daemon) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(worker.address)
    return await asyncio.open_connection(place.hostname, place.port)


@pytest.mark.fault(
    "Security", "garbage, oversized and pipelined requests on the port", "it answers on; memory and log stay small"
)
async def test_garbage_on_the_port_neither_stops_it_nor_fills_the_log_or_the_memory(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(JOURNAL)
    await end_of(connection, await enqueue(connection, "innocent"))
    await worker.metrics()
    before, chance = rss(worker), random.Random(3)  # noqa: S311  # garbage
    for data in (
        *GARBAGE,
        *(chance.randbytes(20_000) for _ in range(20)),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000,
    ):
        await throw(worker, data)
        figures.faults += 1
        assert (await worker.get("/healthz"))[0] == 200
    await enqueue(connection, "innocent")
    await aeventually(lambda: is_empty(connection))
    # One that pipelines is answered once: nobody makes the worker collect requests for them.
    answers = await throw(worker, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    assert answers.count(b"HTTP/1.1 200") == 1
    assert rss(worker) - before < 30e6
    assert worker.process.poll() is None
    assert [line for line in worker.logs() if line.get("level") in {"warning", "error"} or not line["event"]] == []
    assert len(worker.output()) < 10_000
    await checker.check(figures=figures)


@pytest.mark.fault(
    "Security",
    "250 connections that send half a request, or a byte now and then",
    "the port answers others within a second; files stay few",
)
@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_hundreds_of_slow_connections_keep_nobody_from_the_port(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures, *, patient: bool
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(JOURNAL)
    slow: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    async with AsyncExitStack() as stack:
        for place in range(250):
            reader, writer = await dial(worker)
            stack.callback(writer.transport.abort)
            writer.write((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")[place % 3])
            slow.append((reader, writer))
            figures.faults += 1
        async with dripping([writer for _, writer in slow]):
            for _ in range(10):
                began = time.monotonic()
                assert (await worker.get("/metrics"))[0] == 200
                await end_of(connection, await enqueue(connection, "innocent"), timeout=5)
                figures.recovered(time.monotonic() - began)
            assert figures.recovery is not None
            assert figures.recovery < 1
            assert files(worker) <= CONNECTIONS + OWN_FILES
            if not patient:
                return
            # In the end all of them are sent away, also those that go on dripping.
            await aeventually(lambda: all(reader.at_eof() or reader.exception() for reader, _ in slow), timeout=15)
            await aeventually(lambda: files(worker) <= OWN_FILES)
    assert [line for line in worker.logs() if line.get("level") in {"warning", "error"}] == []
    await checker.check(figures=figures)


@asynccontextmanager
async def dripping(writers: list[asyncio.StreamWriter]) -> AsyncIterator[None]:
    """Send a byte on each connection every now and then, for the length of a `with`."""

    async def drip() -> None:
        while True:
            for writer in writers:
                if not writer.is_closing():
                    writer.write(b"x")
            await asyncio.sleep(0.5)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.fault("Security", "a port that nobody has said anything about", "it listens on loopback alone")
async def test_by_default_the_port_is_open_to_this_host_only(daemon: StartDaemon) -> None:
    worker = await daemon()
    port = f"{urlsplit(worker.address).port:04X}"
    assert listening(worker, port) == [f"0100007F:{port}"]


LABELS = """
@handler("work", queue="default")
async def work(job: Job) -> None: ...
"""


@pytest.mark.long
@pytest.mark.fault(
    "Security", "10,000 kinds and 10,000 queues made up by whoever may enqueue", "the series of /metrics stay bounded"
)
async def test_made_up_kinds_and_queues_do_not_multiply_the_series(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    workers = [await daemon(LABELS, queues="default:5,mine:2") for _ in range(2)]
    await end_of(connection, await enqueue(connection))
    await aeventually(lambda: counts(workers, 0))
    few = max([len(await worker.metrics()) for worker in workers])
    await connection.execute(
        """select howdah.enqueue_many(jsonb_agg(jsonb_build_object('kind', 'kind ' || n, 'queue', case when n % 2 = 0 then 'mine' else 'queue ' || n end)))
        from generate_series(1, 10000) n""",
    )
    await connection.execute(
        """select howdah.enqueue_many(jsonb_agg(jsonb_build_object('kind', 'work', 'queue', 'queue ' || n))) from generate_series(10001, 15000) n"""
    )
    await connection.execute("select howdah.pause('queue ' || n) from generate_series(1, 10000) n")
    figures.faults = 20_000
    await aeventually(lambda: counts(workers, 5000), timeout=30)
    found = [await worker.metrics() for worker in workers]
    # Jobs, their oldest, orphans, and pauses: of each a hundred queues and one for the others, in one or two states.
    assert max(map(len, found)) <= few + 5 * 101
    assert not any("kind 1" in name for names in found for name in names)
    assert any('queue="other"' in name for names in found for name in names)
    await end_of(connection, await enqueue(connection))


async def counts(workers: list[Daemon], jobs: int) -> bool:
    """Tell whether the leader has counted at least so many jobs."""
    figures = [await worker.metrics() for worker in workers]
    return any(
        "howdah_census_seconds" in found
        and sum(value for name, value in found.items() if name.startswith("howdah_jobs{")) >= jobs
        for found in figures
    )


def rss(worker: Daemon) -> int:
    return int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(worker: Daemon) -> int:
    return sum(1 for _ in Path(f"/proc/{worker.process.pid}/fd").iterdir())


def listening(worker: Daemon, port: str) -> list[str]:
    """Give the addresses on which anybody of this host's network listens at a port, as the kernel writes them."""
    sockets = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{worker.process.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [socket[1] for socket in sockets if socket[3] == "0A" and socket[1].endswith(f":{port}")]
