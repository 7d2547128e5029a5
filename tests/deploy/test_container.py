"""The image, built from the Dockerfile and run for real: read-only, without capabilities, as nobody."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import pytest
from support.container import Container, base_image, build, told
from support.eventually import aeventually, eventually

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "podman", "runc"))),
        reason="needs root, buildah, podman and runc",
    ),
]

REPOSITORY = Path(__file__).parents[2]
IMAGE = "localhost/howdah:test"
PORT = 19543
PROBE = """
import asyncio
from howdah import Job, handler

@handler("nap", timeout=60)
async def nap(job: Job) -> str:
    await asyncio.sleep(job.payload["seconds"])
    return "slept"

@handler("square", runs_in="process")
def square(job: Job) -> int:
    return job.payload["n"] ** 2
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    build(REPOSITORY, IMAGE, base_image(tmp_path_factory.mktemp("image")))
    return IMAGE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    folder = tmp_path_factory.mktemp("pg")
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o711)
    with EmbeddedPostgres(folder / "data", settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
async def jobs(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server.url())
    await migrate(connection)
    yield connection
    await connection.close()


def daemon(image: str, server: EmbeddedPostgres, tmp_path: Path, **settings: str) -> Container:
    (tmp_path / "probe.py").write_text(PROBE)
    tmp_path.chmod(0o755)
    return Container(
        image,
        environment={
            "HOWDAH_DATABASE_URL": server.url(),
            "HOWDAH_HTTP_PORT": str(PORT),
            "HOWDAH_HANDLERS": "handlers,probe",
            "APP_STORAGE_URL": "file:///dev/shm/files",  # nothing else can be written
            **settings,
        },
        options=("-v", f"{tmp_path}/probe.py:/app/probe.py:ro"),
    )


async def ready() -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{PORT}/readyz") as response:
        return response.status == 200


async def reaches(jobs: asyncpg.Connection, job: int, wanted: str) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        found = await jobs.fetchrow("select * from howdah.job_status where id = $1", job)
        assert found["state"] == wanted, (found["state"], found["error"], found["errors"])
        return found

    return await aeventually(look, timeout=60)  # its process for handlers loads the whole application first


async def test_it_works_as_nobody_on_a_read_only_root_and_a_stop_drains_with_0(
    image: str, server: EmbeddedPostgres, jobs: asyncpg.Connection, tmp_path: Path
) -> None:
    with daemon(image, server, tmp_path) as container:
        await aeventually(ready, timeout=30)
        square = await jobs.fetchval("select id from howdah.enqueue('square', '{\"n\": 12}')")
        assert (await reaches(jobs, square, "completed"))["result"] == "144"
        assert container.run("id", "-u").strip() == "10001"
        assert container.run("howdah", "healthcheck") is not None
        eventually(lambda: told("podman", "--runtime", "runc", "healthcheck", "run", container.id) is not None)
        nap = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 3}')")
        await reaches(jobs, nap, "running")
        assert container.stop(45) == 0
        ended = await reaches(jobs, nap, "completed")
        assert (ended["attempt"], ended["result"]) == (1, '"slept"')
        assert await jobs.fetchval("select count(*) from howdah.workers") == 0


async def test_a_stop_gives_back_what_does_not_end_in_time_and_ends_with_0(
    image: str, server: EmbeddedPostgres, jobs: asyncpg.Connection, tmp_path: Path
) -> None:
    with daemon(image, server, tmp_path, HOWDAH_DRAIN_TIMEOUT="1") as container:
        await aeventually(ready, timeout=30)
        nap = await jobs.fetchval("select id from howdah.enqueue('nap', '{\"seconds\": 50}')")
        await reaches(jobs, nap, "running")
        assert container.stop(20) == 0
        given_back = await reaches(jobs, nap, "ready")
        assert given_back["attempt"] == 0
        await jobs.execute("select howdah.cancel($1, 'test', 'over')", nap)


def test_a_wrong_setting_ends_it_with_78_and_a_line(image: str, server: EmbeddedPostgres, tmp_path: Path) -> None:
    with daemon(image, server, tmp_path, HOWDAH_QUEUES="mail:none") as container:
        eventually(lambda: container.state()["Status"] == "exited", timeout=20)
        assert container.state()["ExitCode"] == 78
        assert "HOWDAH_QUEUES" in container.logs()


def test_there_is_no_compiler_no_pip_and_nothing_of_ours_that_it_may_write(image: str) -> None:
    script = """
        for tool in cc gcc g++ clang make ld; do ! command -v $tool || exit 1; done
        ! /opt/howdah/bin/python -m pip --version 2>/dev/null || exit 2
        [ -z "$(find /opt/howdah /app -writable 2>/dev/null | head -1)" ] || exit 3
        [ ! -e /app/tests ] || exit 4
    """
    with Container(image, options=("--entrypoint", '["sleep", "60"]')) as container:
        container.run("sh", "-c", script)


def test_the_image_says_what_it_is_and_how_to_stop_it(image: str) -> None:
    [found] = json.loads(told("podman", "inspect", image))
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["StopSignal"] == "SIGTERM"
    assert found["Config"]["Entrypoint"] == ["howdah"]
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "Howdah"
    assert found["HealthCheck" if "HealthCheck" in found else "Healthcheck"]["Test"] == ["CMD", "howdah", "healthcheck"]
