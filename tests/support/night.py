"""A small company's system on an ordinary evening, to be broken in one of several ways: daemons that are started again when they die, a mail
server, steady work, and a Prometheus that looks at all of it.

`python -m support.night FOLDER` (with tests and daemon on PYTHONPATH) makes six of them, each broken in a way that the seed HOWDAH_NIGHT_SEED
decides, tells only their addresses, and writes what is wrong where into FOLDER/answers, for whoever has diagnosed them by docs/operating.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.cluster import Cluster, connect_to, new_database
from support.daemon import Daemon
from support.eventually import aeventually
from support.prometheus import RULES, Prometheus
from support.proxy import Proxy

from demo.smtp_server import MailServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.cluster import Database

#: What is replaced in the rules, so that a night need not last an hour. HowdahOldestReady keeps its five minutes, for the age is in the rows.
SHORTER = {
    r"for: \d+m": "for: 2s",
    r"howdah_queue_paused_seconds\) > 3600": "howdah_queue_paused_seconds) > 5",
    r"howdah_limit_oldest_seconds\) > 900": "howdah_limit_oldest_seconds) > 5",
    r"howdah_xmin_held_seconds\) > 900": "howdah_xmin_held_seconds) > 5",
    r"howdah_xmin_age_transactions\) > 10000": "howdah_xmin_age_transactions) > 50",
}
DAEMONS = 2
#: `slow` and `mended` are files: what a provider abroad, or a deploy, would change.
HANDLERS = """
import smtplib
HERE = Path(os.environ["NIGHT"])

@handler("mail.send", queue="mail", runs_in="thread", timeout=30, max_attempts=20, backoff=lambda attempt: 5.0)
def send(job: Job) -> None:
    with smtplib.SMTP("127.0.0.1", int(os.environ["NIGHT_SMTP"]), timeout=5, local_hostname="shop.example") as server:
        server.sendmail("shop@shop.example", ["anna@shop.example"], f"Subject: order {job.id}")

@handler("like.count")
async def count(job: Job) -> None: ...

@handler("report.build", timeout=600)
async def build(job: Job) -> None:
    await asyncio.sleep(15 if (HERE / "slow").exists() else 0.05)

@handler("image.shrink", timeout=60)
async def shrink(job: Job) -> None:
    if job.payload.get("pixels", 0) > 100_000_000 and not (HERE / "mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
"""


def shorter_rules() -> str:
    """Give the project's rules with less patience."""
    rules = RULES.read_text(encoding="utf-8")
    for pattern, instead in SHORTER.items():
        rules, count = re.subn(pattern, instead, rules)
        assert count, f"nothing in the rules is like {pattern}"
    return rules


class System:
    """An async context manager: `database`, `prometheus`, and what a fault needs to get at it."""

    def __init__(self, database: Database, folder: Path, *, through: bool = False) -> None:
        """`through`: LISTEN goes through a wire of ours, which can swallow notifications."""
        self.database = database
        self.folder = folder
        self.daemons: list[Daemon] = []
        self.wire = Proxy(database.url)
        self._through = through
        self._mails = MailServer()
        self._post: asyncio.Server | None = None
        self._ports = [_free_port() for _ in range(DAEMONS + 1)]
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.connection = await connect_to(self.database)
        await self.wire.start()
        await self.open_post()
        for place in range(DAEMONS):
            self.daemons.append(self._daemon(place, 0))
        for daemon in self.daemons:
            await daemon.ready(40)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._supervise())]
        targets = [f"127.0.0.1:{port}" for port in self._ports[:DAEMONS]]
        self.prometheus = await self._stack.enter_async_context(Prometheus(self.folder, targets, rules=shorter_rules()))
        return self

    async def __aexit__(self, *failure: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        for daemon in self.daemons:
            daemon.reap()
        await self.close_post()
        await self.wire.stop()
        self.connection.terminate()

    @property
    def http_port(self) -> int:
        """The port of the first daemon."""
        return self._ports[0]

    async def open_post(self) -> None:
        """Start the mail server."""
        self._post = await asyncio.get_running_loop().create_server(self._mails._answer, "127.0.0.1", self._ports[-1])

    async def close_post(self) -> None:
        """Stop the mail server."""
        if self._post is not None:
            self._post.close()
            self._mails.hang_up()
            self._post = None

    def _daemon(self, place: int, life: int) -> Daemon:
        return Daemon(
            self.folder / f"daemon{place}.{life}", url=self.database.url, handlers=HANDLERS,
            environment={
                "HOWDAH_HTTP_PORT": str(self._ports[place]), "HOWDAH_QUEUES": "default:4,mail:4", "HOWDAH_LEASE_TTL": "3",
                "NIGHT": str(self.folder), "NIGHT_SMTP": str(self._ports[-1]),
            } | ({"HOWDAH_LISTEN_DATABASE_URL": self.wire.url} if self._through else {}),
        )  # fmt: skip

    async def _supervise(self) -> None:
        """Start again what died, a second later, as systemd does."""
        life = 0
        while True:
            await asyncio.sleep(1)
            for place, daemon in enumerate(self.daemons):
                if daemon.process.poll() is not None:
                    life += 1
                    self.daemons[place] = self._daemon(place, life)

    async def _work(self) -> None:
        """An evening's work."""
        connection = await connect_to(self.database)
        try:
            while True:
                await connection.execute(
                    """select howdah.enqueue('mail.send') from generate_series(1, 3);
                    select howdah.enqueue('like.count') from generate_series(1, 5);
                    select howdah.enqueue('report.build'), howdah.enqueue('image.shrink', '{"pixels": 2000000}')"""
                )
                await asyncio.sleep(0.5)
        finally:
            connection.terminate()


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def nothing(system: System) -> None:
    """All is well."""
    assert not system.connection.is_closed()


async def report_left_open(system: System) -> None:
    """Somebody's report has left its transaction open."""
    system.report = await system.database.connect(server_settings={"application_name": "quarterly report"})  # type: ignore[attr-defined]
    await system.report.execute("begin isolation level repeatable read; select count(*) from howdah.job_status")  # type: ignore[attr-defined]


async def queue_forgotten(system: System) -> None:
    """Somebody paused a queue and went home."""
    await system.connection.execute("select howdah.pause('mail', 'anna')")


async def mail_server_down(system: System) -> None:
    """What a handler talks to is away."""
    await system.close_post()


async def poison(system: System) -> None:
    """A job brings down each worker that runs it."""
    await system.connection.execute("""select howdah.enqueue('image.shrink', '{"pixels": 900000000}')""")


async def slow_kind(system: System) -> None:
    """One kind has become slow, and takes all slots of its queue."""
    (system.folder / "slow").touch()
    await aeventually(lambda: system.folder.exists())


async def brake_forgotten(system: System) -> None:
    """Somebody set a limit to nothing and went home."""
    await system.connection.execute("select howdah.set_limit('kind:mail.send', concurrency => 0)")


async def deaf(system: System) -> None:
    """Somebody put a pooler in the way of LISTEN."""
    system.wire.deaf = True
    system.wire.cut()
    await aeventually(lambda: system.wire.deaf)


async def orphans(system: System) -> None:
    """A deploy has left a kind without a handler."""
    await system.connection.execute("select howdah.enqueue('invoice.print') from generate_series(1, 20)")


FIVE: list[Callable[[System], Awaitable[None]]] = [
    report_left_open,
    queue_forgotten,
    mail_server_down,
    poison,
    slow_kind,
]
OTHERS: list[Callable[[System], Awaitable[None]]] = [brake_forgotten, deaf, orphans, nothing]


# -- the blind night --------------------------------------------------------------------------------------------------


async def _night(folder: Path) -> None:
    chance = random.Random(os.environ["HOWDAH_NIGHT_SEED"])  # noqa: S311 - whoever knows the seed may know the night
    faults = [*FIVE, chance.choice(OTHERS)]
    chance.shuffle(faults)
    systems: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        for name, fault in zip("ABCDEF", faults, strict=True):
            database = await stack.enter_async_context(new_database())
            system = await stack.enter_async_context(System(database, folder / name, through=fault is deaf))
            systems[name] = {
                "HOWDAH_DATABASE_URL": database.url,
                "HOWDAH_HTTP_PORT": system.http_port,
                "prometheus": system.prometheus.address,
                "logs": str(folder / name),
            }
            await asyncio.sleep(8)
            await fault(system)
        (folder / "answers").write_text(
            "\n".join(f"{name} {fault.__name__}" for name, fault in zip("ABCDEF", faults, strict=True))
        )
        (folder / "systems.json").write_text(json.dumps(systems, indent=1))
        while not (folder / "over").exists():  # noqa: ASYNC110 - somebody else writes it
            await asyncio.sleep(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    cluster = Cluster()
    cluster.start()
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_night(Path(sys.argv[1])))
    finally:
        cluster.stop()
