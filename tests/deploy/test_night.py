"""The night: which of five faults is it? Each trail from the dashboard over the alert and the doctor's line to the page that names the remedy,
and the remedy by the documented command. docs/night.md tells the same trails to people."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import night
from support.daemon import howdah
from support.eventually import aeventually
from support.night import System
from unit.test_dashboard_build import built, panels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.cluster import Database

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is missing: ./dev deploy-test installs it"
    ),
]

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operating.md").read_text(encoding="utf-8")
TELLS = (DOCS / "night.md").read_text(encoding="utf-8")
SHOWN = {
    (panel["title"], target["legendFormat"]): target["expr"] for panel in panels(built()) for target in panel["targets"]
}


@dataclass(frozen=True)
class Trail:
    """What a person meets, one after the other."""

    fault: Callable[[System], Awaitable[None]]
    #: A panel and its line, whom to look at in it, and from which value on it is not normal.
    panel: tuple[str, str]
    of: dict[str, str]
    above: float
    alert: str
    #: The doctor's line, what it says, and the command in what it says to do.
    topic: str
    says: str
    command: str
    #: A word of the remedy that the alert's page has, too.
    page: str


TRAILS = [
    Trail(night.report_left_open, ("Loop lag and oldest snapshot", "oldest snapshot"), {}, 30, "HowdahSnapshotHeld",
          "snapshot", r"quarterly report, idle in transaction", r"select pg_terminate_backend\(\d+\)", "pg_terminate_backend"),
    Trail(night.queue_forgotten, ("Held back on purpose", "{{queue}} paused"), {"queue": "mail"}, 5, "HowdahQueuePaused",
          "paused", r"queue mail has been paused for .* by anna", r"howdah resume mail", "howdah resume"),
    Trail(night.mail_server_down, ("Share that fails, by kind", "{{kind}}"), {"kind": "mail.send"}, 0.5, "HowdahErrorRate",
          "failing", r"jobs of kind mail.send failed and wait to be tried again.*ConnectionRefusedError", r"howdah jobs --kind mail.send --state retrying", "retries come by themselves"),
    Trail(night.poison, ("What should not happen", "buried"), {}, 0.5, "HowdahPoisonJob",
          "poison", r"1 job of kind image.shrink brought down their workers", r"howdah retry \d+", "howdah retry"),
    Trail(night.slow_kind, ("Slots in use", "{{queue}}"), {"queue": "default"}, 0.99, "HowdahOldestReady",
          "queues", r"default: .* ready, the oldest for .* of them report.build", r"howdah limit set kind:report.build --concurrency N", "howdah limit set kind:"),
]  # fmt: skip


@pytest.fixture
async def system(database: Database, tmp_path: Path) -> AsyncIterator[System]:
    async with System(database, tmp_path / "night") as system:
        yield system


@pytest.mark.parametrize("trail", TRAILS, ids=lambda trail: trail.fault.__name__)
async def test_from_the_panel_to_the_remedy(system: System, trail: Trail) -> None:
    told = [f"## {trail.fault.__doc__}"]
    shown = lambda: value_of(system, trail)  # noqa: E731  # asked again and again
    await aeventually(lambda: system.prometheus.ask("max(howdah_jobs)"), timeout=40)
    await aeventually(lambda: calm(system), timeout=60)
    normal = await shown()
    assert normal is None or normal < trail.above, normal
    # The page that tells the trails leads from this alert to this line and this command.
    assert trail.page in section(trail.alert), trail.alert
    assert all(word in TELLS for word in (trail.panel[0], trail.alert, f"`{trail.topic}`")), trail

    await trail.fault(system)
    await aeventually(lambda: shown_above(system, trail), timeout=120)
    told.append(f"panel {' / '.join(trail.panel)}: {normal} → {await shown()}")
    await aeventually(lambda: fires(system, trail.alert), timeout=120)
    told.append(f"alerts: {', '.join(sorted(await system.prometheus.firing()))}")
    line = await aeventually(lambda: found(system, trail), timeout=90)
    told.append(f"doctor: {line['level']} {line['topic']} {line['says']} → {line['do']}")
    command = re.search(trail.command, line["do"])
    assert command is not None, line

    told.append(await heal(system, trail, command[0]))
    await aeventually(lambda: well(system, trail), timeout=120)
    told.append(f"afterwards: {await shown()}")
    if folder := os.environ.get("HOWDAH_NIGHT"):
        await asyncio.to_thread((Path(folder) / trail.fault.__name__).write_text, "\n".join(told) + "\n")


async def value_of(system: System, trail: Trail) -> float | None:
    """Ask what the panel's line shows, as Grafana asks."""
    expr = SHOWN[trail.panel].replace("$__rate_interval", "10s").replace("$queue", ".*").replace("$kind", ".*")
    rows = [row for row in await system.prometheus.ask(expr) if trail.of.items() <= row["metric"].items()]
    return max((float(row["value"][1]) for row in rows), default=None)


async def shown_above(system: System, trail: Trail) -> bool:
    value = await value_of(system, trail)
    return value is not None and value >= trail.above


async def calm(system: System) -> bool:
    return not await system.prometheus.firing()


async def fires(system: System, alert: str) -> bool:
    if alert == "HowdahOldestReady":  # five minutes pass
        await system.connection.execute(
            """update howdah.jobs set created_at = created_at - interval '6 min', ready_at = ready_at - interval '6 min'
            where id in (select id from howdah.jobs where lease is null and due_at is null and ready_at > now() - interval '5 min' for update skip locked)"""
        )
        await asyncio.sleep(0.5)
    return alert in await system.prometheus.firing()


def section(alert: str) -> str:
    """Give what the alert's runbook says."""
    return PAGE.split(f"### {alert}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]


async def findings(system: System) -> list[dict[str, str]]:
    done = await run(system, "doctor", "--json")
    lines: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return lines


async def run(system: System, *arguments: str) -> Any:
    return await asyncio.to_thread(
        howdah, *arguments, folder=system.folder, HOWDAH_DATABASE_URL=system.database.url, HOWDAH_HTTP_PORT=str(system.http_port)
    )  # fmt: skip


async def found(system: System, trail: Trail) -> dict[str, str] | None:
    for one in await findings(system):
        if one["topic"] == trail.topic and one["level"] in {"warn", "fail"} and re.search(trail.says, one["says"]):
            return one
    await asyncio.sleep(1)
    return None


async def heal(system: System, trail: Trail, command: str) -> str:
    """Do what was said to do; gives it with what came of it."""
    if command.startswith("select "):
        await system.connection.execute(command)
        return f"$ psql -c '{command}'"
    if trail.fault is night.mail_server_down:
        listed = await run(system, *command.split()[1:])
        assert listed.returncode == 0, listed.stderr
        await system.open_post()
        return f"$ {command}\n{listed.stdout.splitlines()[0]}\n{listed.stdout.splitlines()[1]}"
    if trail.fault is night.poison:
        (system.folder / "mended").touch()
    command = command.replace(" N", " 2")
    done = await run(system, *command.split()[1:])
    assert done.returncode == 0, done.stderr
    return f"$ {command}\n{done.stdout.strip()}"


async def well(system: System, trail: Trail) -> bool:
    """Tell whether the fault is gone where it was seen; who was buried stays counted for a while."""
    if trail.fault is night.poison:
        ended = await system.connection.fetchval(
            "select state from howdah.job_status where kind = 'image.shrink' and retried_from is not null"
        )
        return bool(ended == "completed")
    if trail.fault is night.slow_kind:  # others get on, though the slow ones wait on in their own line
        oldest = await system.prometheus.ask('max(howdah_oldest_ready_seconds{queue="default"})')
        return bool(float(oldest[0]["value"][1]) < 60)
    value = await value_of(system, trail)
    return (value is None or value < trail.above) and await found(system, trail) is None
