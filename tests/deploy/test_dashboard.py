"""Every panel's query, asked of a real Prometheus that scraped real daemons under load; and the picture of it in docs/."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import Daemon
from support.eventually import aeventually
from support.prometheus import Prometheus
from unit.test_dashboard_build import built, panels

if TYPE_CHECKING:
    import asyncpg
    from support.cluster import Database

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
SECONDS = 60
HANDLERS = """
@handler("mail.send", queue="mail", timeout=30)
async def send(job: Job) -> None:
    await asyncio.sleep(0.02)

@handler("like.count")
async def count(job: Job) -> None: ...

@handler("report.build", max_attempts=2, backoff=lambda attempt: 1.0)
async def build(job: Job) -> None:
    await asyncio.sleep(0.3)
    if job.id % 5 == 0: raise ValueError("no figures")

@handler("video.cut")
async def cut(job: Job) -> None:
    await asyncio.sleep(4)

@handler("image.shrink")
async def shrink(job: Job) -> None:
    time.sleep(0.15)
"""


async def load(connection: asyncpg.Connection, seconds: float) -> None:
    """A day of work in a minute: a wave of mails, a steady stream of counts, reports that fail, a handler that blocks."""
    end = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < end:
        turn += 1
        mails = 250 if 20 < turn % 40 < 30 else 20
        await connection.execute(
            "select howdah.enqueue('mail.send', queue => 'mail') from generate_series(1, $1)", mails
        )
        await connection.execute("select howdah.enqueue('like.count') from generate_series(1, 100)")
        await connection.execute("select howdah.enqueue('report.build') from generate_series(1, 3)")
        if turn % 4 == 0:
            await connection.execute("select howdah.enqueue('video.cut') from generate_series(1, 6)")
        if turn == 5:
            await connection.execute("select howdah.set_limit('kind:video.cut', concurrency => 6)")
            await connection.execute("select howdah.pause('letters', 'anna')")
            await connection.execute("select howdah.schedule('counts', '* * * * * *', 'like.count')")
        if turn % 10 == 0:
            await connection.execute("select howdah.enqueue('image.shrink')")
        if turn == 30:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'howdah ack' and datname = current_database()"
            )
        await asyncio.sleep(0.5)


@pytest.fixture
async def prometheus(database: Database, connection: asyncpg.Connection, tmp_path: Path) -> Any:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: ./dev deploy-test installs it")
    daemons = [
        await Daemon(
            tmp_path / f"daemon{n}", url=database.url, handlers=HANDLERS,
            environment={"HOWDAH_QUEUES": "default:20,mail:10", "HOWDAH_LEASE_TTL": "3"},
        ).ready()
        for n in range(3)
    ]  # fmt: skip
    try:
        async with Prometheus(tmp_path, [daemon.address.removeprefix("http://") for daemon in daemons]) as server:
            loading = asyncio.create_task(load(connection, SECONDS))
            reporting = await database.connect()
            await reporting.execute("begin isolation level repeatable read; select from howdah.jobs")
            await asyncio.sleep(SECONDS / 2)  # the fault comes in the middle of the picture
            daemons[2].kill()
            await loading
            await reporting.close()
            # The census of the database comes every 20 s.
            await aeventually(lambda: server.ask("max(howdah_jobs)"), timeout=30)
            yield server
    finally:
        for daemon in daemons:
            daemon.reap()


async def test_every_panel_has_data_of_daemons_under_load(prometheus: Prometheus) -> None:
    """The one test of this module that needs the daemons: it also draws the picture, if HOWDAH_PICTURE says where."""
    now = time.time()
    shown: dict[str, list[Any]] = {}
    empty = []
    for panel in panels(built()):
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "8s").replace("$queue", ".*").replace("$kind", ".*")
            series = await prometheus.ask_range(expr, now - SECONDS - 5, now, step=1)
            if not any(one["values"] for one in series):
                empty.append(f"{panel['title']}: {expr}")
            shown.setdefault(panel["title"], []).extend([{"legend": target["legendFormat"], **one} for one in series])
    assert not empty, "\n".join(empty)
    picture = os.environ.get("HOWDAH_PICTURE")
    if picture:
        draw = importlib.import_module("support.picture").draw  # matplotlib is not among what the tests need
        draw(built(), shown, Path(picture))


def test_it_is_a_dashboard_by_grafanas_own_types() -> None:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "howdah" / "grafana"
    if shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules/@grafana/schema").is_dir() or not (folder / "node_modules/typescript").is_dir():
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "@grafana/schema", "typescript@5"],
            check=True, timeout=300,
        )  # fmt: skip

    def complaints(dashboard: dict[str, Any]) -> str:
        (folder / "check.ts").write_text(
            "import type { Dashboard } from '@grafana/schema';\n"
            "type Loose<T> = T extends string ? `${T}` : T extends number ? T : T extends Array<infer U> ? Array<Loose<U>>"
            " : T extends object ? {[K in keyof T]: Loose<T[K]>} : T;\n"
            f"export const dashboard: Loose<Dashboard> = {json.dumps(dashboard, indent=1)};\n"
        )
        done = subprocess.run(
            [folder / "node_modules/.bin/tsc", "--strict", "--noEmit", "--skipLibCheck", "--moduleResolution", "bundler",
             "--module", "esnext", "--target", "es2022", "check.ts"],
            cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.stdout

    assert complaints(built()) == ""
    # And it would say so.
    assert "titel" in complaints({**built(), "titel": "Howdah"})
