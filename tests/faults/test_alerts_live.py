"""Five alerts in a real Prometheus, each over a daemon that is really broken in that way; and the doctor names all five.

Takes some minutes, so it runs by `./dev alerts --live` and not with the others. What is shortened is listed in SHORTER: the rules
are those of deploy/prometheus, with less patience.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from support.daemon import Daemon, howdah
from support.eventually import aeventually
from support.jobs import enqueue
from support.proxy import proxied

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg
    from conftest import Connect
    from support.cluster import Database

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "howdah.rules.yml"
#: What is replaced in the rules, so that a test need not last an hour: seconds instead of minutes.
SHORTER = {
    r"for: \d+m": "for: 2s",
    r"howdah_queue_paused_seconds\) > 3600": "howdah_queue_paused_seconds) > 5",
    r"howdah_xmin_held_seconds\) > 900": "howdah_xmin_held_seconds) > 5",
    r"howdah_xmin_age_transactions\) > 10000": "howdah_xmin_age_transactions) > 50",
}
PATIENCE = 120.0

WELL = """
@handler("work")
async def work(job: Job) -> None: ...
"""
POISON = """
@handler("poison")
async def poison(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed; ./dev alerts installs it"
    ),
]


class Prometheus:
    """A server of our own, which looks every second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        rules = RULES.read_text(encoding="utf-8")
        for pattern, shorter in SHORTER.items():
            rules, count = re.subn(pattern, shorter, rules)
            assert count, f"nothing in the rules is like {pattern}"
        (folder / "rules.yml").write_text(rules, encoding="utf-8")
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["rules.yml"],
                    "scrape_configs": [{"job_name": "howdah", "static_configs": [{"targets": targets}]}],
                }
            ),
            encoding="utf-8",
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    async def firing(self) -> dict[str, dict[str, str]]:
        """The alerts that fire: name → labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.address}/api/v1/alerts") as answer:
            alerts: list[Any] = (await answer.json())["data"]["alerts"]
        return {one["labels"]["alertname"]: one["labels"] for one in alerts if one["state"] == "firing"}

    async def sees(self, count: int) -> bool:
        """Whether it has scraped so many targets."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.address}/api/v1/targets") as answer:
            targets: list[Any] = (await answer.json())["data"]["activeTargets"]
        return sum(target["health"] == "up" for target in targets) == count


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    folder.mkdir()
    server = Prometheus(folder, targets)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(10)
        server.log.close()


async def test_five_faults_are_called_by_prometheus_and_named_by_the_doctor(
    connection: asyncpg.Connection, connect: Connect, database: Database, tmp_path: Path
) -> None:
    daemons: list[Daemon] = []

    async def start(handlers: str, **settings: str) -> Daemon:
        daemons.append(
            Daemon(
                tmp_path / f"daemon{len(daemons)}",
                url=database.url,
                handlers=handlers,
                environment={"HOWDAH_LEASE_TTL": "3", **settings},
            )
        )
        return daemons[-1]

    async with proxied(database.url) as wire:
        try:
            first = await (await start(WELL)).ready()
            second = await (await start(WELL, HOWDAH_LISTEN_DATABASE_URL=wire.url)).ready()
            check_metrics((await first.get("/metrics"))[1])
            targets = [str(urlsplit(daemon.address).netloc) for daemon in (first, second)]
            with prometheus(tmp_path / "prometheus", targets) as server:
                await aeventually(lambda: server.sees(2), 30)
                await aeventually(lambda: leads([first, second]), 30)
                await aeventually(lambda: is_calm(server), 30)
                seen = await break_and_watch(server, connection, connect, start, wire)
                await aeventually(lambda: held_for(connection, 60), 90)
                # In a thread: the wire is this loop's.
                found = await asyncio.to_thread(doctors_word, tmp_path, database.url, wire.url)
        finally:
            for daemon in daemons:
                daemon.reap()
    print("\nfault, the alert that called it, seconds from the fault to the call, and the doctor's line")  # noqa: T201 - the verb's report
    for fault, (alert, seconds, topic) in seen.items():
        lines = [
            f"{one['level']} {one['topic']}: {one['says']} → {one['do']}" for one in found if one["topic"] == topic
        ]
        print(f"{fault:<15} {alert:<20} {seconds:>6.1f} s   {lines[0] if lines else 'NOTHING'}")  # noqa: T201
        assert any(line.startswith(("warn", "fail")) for line in lines), (fault, found)


async def break_and_watch(
    server: Prometheus, connection: asyncpg.Connection, connect: Connect, start: Any, wire: Any
) -> dict[str, tuple[str, float, str]]:
    """Break five things and wait for the five calls; gives alert, seconds and the doctor's topic of each."""
    holder = await connect()
    await holder.execute("begin isolation level repeatable read; select 1")
    for _ in range(100):
        await connection.execute("select pg_current_xact_id()")
    wire.deaf = True
    wire.cut()
    await connection.execute("select howdah.pause('mail', 'anna')")
    await enqueue(connection, "strange")
    await enqueue(connection, "poison")
    began = time.monotonic()
    faults = {
        "xmin held": ("HowdahSnapshotHeld", "snapshot"),
        "listener deaf": ("HowdahListenerDeaf", "listen"),
        "paused queue": ("HowdahQueuePaused", "paused"),
        "missing kind": ("HowdahOrphanJobs", "orphans"),
        "poison job": ("HowdahPoisonJob", "poison"),
    }
    seen: dict[str, tuple[str, float, str]] = {}

    async def all_are_called() -> bool:
        firing = await server.firing()
        for fault, (alert, topic) in faults.items():
            if alert in firing and fault not in seen:
                seen[fault] = (alert, time.monotonic() - began, topic)
        return len(seen) == len(faults)

    # Three lives are what a poison job may cost. They are rescued by those that have no handler for it.
    for _ in range(3):
        victim = await start(POISON)
        await aeventually(lambda victim=victim: victim.process.poll() is not None, 40)
        await all_are_called()
    await aeventually(all_are_called, PATIENCE)
    return seen


async def is_calm(server: Prometheus) -> bool:
    return await server.firing() == {}


async def leads(daemons: list[Daemon]) -> bool:
    return any([await daemon.metric("howdah_leading") for daemon in daemons])


async def held_for(connection: asyncpg.Connection, seconds: float) -> bool:
    held: bool = await connection.fetchval(
        "select max(clock_timestamp() - xact_start) > $1 * interval '1 second' from pg_stat_activity "
        "where state = 'idle in transaction' and datname = current_database()",
        seconds + 1,
    )
    return held


def doctors_word(folder: Path, url: str, listen_url: str) -> list[dict[str, str]]:
    done = howdah(
        "doctor",
        "--json",
        folder=folder,
        HOWDAH_DATABASE_URL=url,
        HOWDAH_LISTEN_DATABASE_URL=listen_url,
        HOWDAH_HTTP_PORT="1",
    )
    assert done.returncode == 1, done.stdout
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return findings


def check_metrics(text: str) -> None:
    """What a real daemon exports is what promtool has nothing to say about."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
