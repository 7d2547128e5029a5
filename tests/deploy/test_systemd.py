"""The units in a real systemd, installed by following deploy/systemd/README.md to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest
from support.eventually import aeventually, eventually
from support.machine import Machine

from howdah.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("systemd-nspawn") is None, reason="needs root and systemd-nspawn"
    ),
]

REPOSITORY = Path(__file__).parents[2]
CHECKOUT = "/srv/howdah"

PROBE = """
import asyncio, ctypes
from pathlib import Path
from howdah import Job, handler

@handler("nap", timeout=60)
async def nap(job: Job) -> str:
    await asyncio.sleep(job.payload["seconds"])
    return "slept"

@handler("wedge", timeout=60, max_attempts=5)
async def wedge(job: Job) -> str:
    once = Path("/var/lib/howdah/wedged")
    if once.exists():
        return "not again"
    once.touch()
    ctypes.PyDLL(None).sleep(600)  # in C, and the interpreter's lock is not given up
    return "woke"
"""


def block(name: str) -> str:
    """The commands of a block of the instructions."""
    text = (REPOSITORY / "deploy" / "systemd" / "README.md").read_text()
    found = re.search(rf"^```sh {name}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A PostgreSQL that can be reached through a socket, for the machine has a network of its own."""
    folder = Path(tempfile.mkdtemp(prefix="hd-", dir="/srv"))  # not below /tmp or /var/tmp: the service has its own
    folder.chmod(0o711)
    sockets = folder / "s"
    sockets.mkdir()
    sockets.chmod(0o777)
    with EmbeddedPostgres(folder / "pg", settings={"fsync": "off", "unix_socket_directories": str(sockets)}) as server:
        yield server, sockets
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def machine(server: tuple[EmbeddedPostgres, Path]) -> Iterator[Machine]:
    """A machine on which the instructions were followed."""
    postgres, sockets = server
    # Another build may have left a wheel of another release.
    shutil.rmtree(REPOSITORY / "dist", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    parts = urlsplit(postgres.url())
    address = f"postgresql://{parts.username}:{parts.password}@/postgres?host={sockets}&port={parts.port}"
    with Machine(sockets) as machine:
        checkout = machine.root / CHECKOUT.lstrip("/")
        checkout.mkdir(parents=True)
        for name in ("dist", "deploy", "handlers"):
            shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        # The interpreter that the distribution has: what a service may read.
        machine.prepare("export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n" + block("install"), folder=CHECKOUT)
        (machine.root / "opt/howdah/app/probe.py").write_text(PROBE)
        machine.boot()
        known = {"DATABASE_URL": address, "OWNER_URL": address}
        for name in ("configure", "migrate"):
            machine.run(block(name), folder=CHECKOUT, environment=known)
        machine.run(
            "echo HOWDAH_HANDLERS=handlers,probe >> /etc/howdah/howdah.env; echo HOWDAH_LEASE_TTL=3 >> /etc/howdah/howdah.env"
        )
        machine.run(block("start"), folder=CHECKOUT)
        yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service at work, whatever the test before has left."""
    settings = machine.run("cat /etc/howdah/howdah.env")
    machine.run("systemctl reset-failed howdah; systemctl restart howdah", environment={})
    yield machine
    (machine.root / "etc/howdah/howdah.env").write_text(settings)
    machine.run("rm -rf /run/systemd/system/howdah.service.d; systemctl daemon-reload")


@pytest.fixture
async def jobs(server: tuple[EmbeddedPostgres, Path]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server[0].url())
    yield connection
    await connection.close()


async def state(jobs: asyncpg.Connection, job: int) -> asyncpg.Record:
    return await jobs.fetchrow("select * from howdah.job_status where id = $1", job)


async def reaches(jobs: asyncpg.Connection, job: int, wanted: str, within: float = 20) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        found = await state(jobs, job)
        return found if found["state"] == wanted else None

    return await aeventually(look, timeout=within)


def drop_in(machine: Machine, text: str) -> None:
    machine.run(
        f"mkdir -p /run/systemd/system/howdah.service.d; printf '{text}' > /run/systemd/system/howdah.service.d/test.conf; systemctl daemon-reload; systemctl restart howdah"
    )


async def test_the_instructions_bring_up_a_service_that_works_with_few_rights(
    service: Machine, jobs: asyncpg.Connection
) -> None:
    assert service.show("howdah", "ActiveState") == "active"
    assert service.show("howdah", "StatusText") == "working"
    job = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 0}')")
    assert (await reaches(jobs, job, "completed"))["result"] == '"slept"'
    pid = service.show("howdah", "MainPID")
    # Nobody's user, and the address is in nobody's environment.
    assert service.run(f"stat -c %u /proc/{pid}").strip() not in {"0", "65534"}
    assert "postgresql://" not in service.run(f"tr '\\\\0' '\\\\n' < /proc/{pid}/environ")
    assert "postgresql://" not in service.run("systemctl show howdah; journalctl -u howdah --no-pager")
    # systemd complains of nothing in the units themselves.
    assert service.call("systemd-analyze verify howdah.service howdah@mail.service 2>&1 | grep howdah").stdout == ""


def test_its_exposure_is_below_2(service: Machine) -> None:
    for unit in ("howdah.service", "howdah@mail.service"):
        told = service.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        score = re.search(r"(\d+\.\d+)", told)
        assert score, told
        assert float(score[1]) < 2.0


async def test_a_stop_drains_and_ends_with_0(service: Machine, jobs: asyncpg.Connection) -> None:
    job = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 2}')")
    await reaches(jobs, job, "running")
    service.run("systemctl stop howdah")
    ended = await state(jobs, job)
    assert (ended["state"], ended["attempt"], ended["result"]) == ("completed", 1, '"slept"')
    assert (service.show("howdah", "Result"), service.show("howdah", "ExecMainStatus")) == ("success", "0")
    assert await jobs.fetchval("select count(*) from howdah.workers") == 0


def test_a_reload_reads_the_file_again_and_interrupts_nothing(service: Machine) -> None:
    pid = service.show("howdah", "MainPID")
    service.run("sed -i s/25/26/ /etc/howdah/howdah.toml; systemctl reload howdah")
    eventually(lambda: "settings read again" in service.run("journalctl -u howdah --no-pager -n 20 -o cat"), timeout=5)
    assert service.show("howdah", "MainPID") == pid
    assert service.show("howdah", "ActiveState") == "active"


async def test_a_process_that_is_wedged_is_aborted_with_its_stacks_and_started_again(
    service: Machine, jobs: asyncpg.Connection
) -> None:
    drop_in(service, "[Service]\\nWatchdogSec=3\\n")
    job = await jobs.fetchval("select id from howdah.enqueue('wedge')")
    ended = await reaches(jobs, job, "completed", within=40)
    assert ended["result"] == '"not again"'
    assert int(service.show("howdah", "NRestarts")) == 1
    said = service.run("journalctl -u howdah --no-pager -n 200")
    assert "Watchdog timeout" in said
    assert "probe.py" in said, "its stacks are missing"


async def test_a_killed_daemon_is_started_again(service: Machine, jobs: asyncpg.Connection) -> None:
    job = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 1}')")
    await reaches(jobs, job, "running")
    service.run("systemctl kill --kill-whom=main -s KILL howdah")
    assert (await reaches(jobs, job, "completed"))["attempt"] == 1
    assert int(service.show("howdah", "NRestarts")) == 1


@pytest.mark.parametrize(
    ("line", "named"), [("HOWDAH_QUEUES=mail:none", "HOWDAH_QUEUES"), ("HOWDAH_HANDLERS=nowhere", "nowhere")]
)
def test_a_wrong_configuration_is_told_in_a_line_and_not_tried_again(service: Machine, line: str, named: str) -> None:
    service.run(f"echo {line} >> /etc/howdah/howdah.env")
    assert service.call("systemctl restart howdah").returncode != 0
    assert service.show("howdah", "ExecMainStatus") == "78"
    assert service.show("howdah", "ActiveState") == "failed"
    assert service.show("howdah", "NRestarts") == "0"
    assert named in service.run("journalctl -u howdah --no-pager -n 10")


async def test_several_daemons_run_on_one_host(service: Machine, jobs: asyncpg.Connection) -> None:
    service.run(
        "printf 'HOWDAH_QUEUES=mail:2\\nHOWDAH_HTTP_PORT=9544\\n' > /etc/howdah/mail.env; systemctl start howdah@mail || { journalctl -u howdah@mail --no-pager -n 20; exit 1; }"
    )
    try:
        job = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 0}', queue => 'mail')")
        await reaches(jobs, job, "completed")
        assert service.show("howdah@mail", "ActiveState") == "active"
    finally:
        service.run("systemctl stop howdah@mail")


def test_the_template_is_the_service_with_an_instance_in_it() -> None:
    """Two files that say the same twice must not drift apart."""
    service, template = (
        [line for line in (REPOSITORY / "deploy/systemd" / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("howdah.service", "howdah@.service")
    )
    assert [line for line in template if line not in service] == [
        "Description=Howdah %i: background jobs of PostgreSQL",
        "EnvironmentFile=/etc/howdah/%i.env",
        "StateDirectory=howdah-%i",
    ]
    assert len(template) == len(service) + 1
