"""The command line: what a person or a script sees, and the exit codes that a supervisor acts on."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from support.cluster import new_database
from support.commands import cli
from support.daemon import Daemon, howdah, write_handlers
from support.facts import end_of
from support.jobs import enqueue, enqueue_many, status

from howdah.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

CONFIGURATION = 78


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a handlers module."""
    write_handlers(tmp_path)
    return tmp_path


def refuses(*arguments: str, folder: Path, **variables: Any) -> str:
    """Run a command that must exit 78, and give the one line that it says."""
    done = howdah(*arguments, folder=folder, **variables)
    assert done.returncode == CONFIGURATION, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith('{"time"')]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_without_a_database_nothing_starts(folder: Path) -> None:
    assert refuses("run", folder=folder).startswith("howdah: HOWDAH_DATABASE_URL: is not set")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOWDAH_QUEUES", "default:many"),
        ("HOWDAH_LEASE_TTL", "soon"),
        ("HOWDAH_DATABASE_URL", "mysql://localhost/jobs"),
        ("HOWDAH_DATABASE_URL_FILE", "/nowhere/at/all"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(folder: Path, variable: str, value: str) -> None:
    settings = {"HOWDAH_DATABASE_URL": "postgresql://127.0.0.1:1/x"} if "DATABASE" not in variable else {}
    said = refuses("run", folder=folder, **settings, **{variable: value})
    assert said.startswith(f"howdah: {variable}: ")


def test_handlers_that_cannot_be_loaded_are_a_configuration_error(tmp_path: Path, database: Database) -> None:
    def said(*arguments: str, handlers: str | None = None) -> str:
        if handlers is not None:
            write_handlers(tmp_path, handlers)
        return refuses(*arguments, folder=tmp_path, HOWDAH_DATABASE_URL=database.url)

    assert "'handlers'" in said("run")
    assert "'elsewhere'" in said("register", "--handlers", "elsewhere")
    assert "ZeroDivisionError" in said("register", handlers="1/0")
    assert "handlers.py, line 9)" in said("register", handlers="def :")
    assert "no handler is declared" in said("register", handlers="")
    line = said(
        "register",
        handlers="""
        @handler("mail")
        async def one(job: Job): ...

        @handler("mail")
        async def two(job: Job): ...
        """,
    )
    assert all(word in line for word in ("'mail'", "handlers.one", "handlers.two"))


async def test_a_database_without_the_schema_says_what_to_run(folder: Path) -> None:
    async with new_database(empty=True) as database:
        url = {"HOWDAH_DATABASE_URL": database.url}
        for command in ("run", "register"):
            assert "run howdah migrate" in refuses(command, folder=folder, **url)


async def test_a_schema_that_asks_for_a_newer_release_is_refused(
    folder: Path, database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("update howdah.settings set min_worker_version = '99.0.0'")
    said = refuses("run", folder=folder, HOWDAH_DATABASE_URL=database.url)
    assert "99.0.0" in said
    assert __version__ in said


def test_a_wrong_address_of_the_database_is_no_outage(folder: Path, database: Database) -> None:
    parts = urlsplit(database.url)
    wrong_password = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":wrong@")).geturl()
    assert "password authentication failed" in refuses("run", folder=folder, HOWDAH_DATABASE_URL=wrong_password)
    wrong_name = parts._replace(path="/nowhere").geturl()
    assert '"nowhere" does not exist' in refuses("run", folder=folder, HOWDAH_DATABASE_URL=wrong_name)


async def test_a_port_that_is_taken_is_named_and_leaves_no_worker_behind(
    folder: Path, database: Database, connection: asyncpg.Connection
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refuses("run", folder=folder, HOWDAH_DATABASE_URL=database.url, HOWDAH_HTTP_PORT=port)
    assert said.startswith("howdah: HOWDAH_HTTP_PORT: cannot listen on 127.0.0.1:" + port)
    assert await connection.fetchval("select count(*) from howdah.workers") == 0


# -- run for a while ---------------------------------------------------------------------------------------------------

MORTAL = """
@handler("work")
async def work(job: Job): ...

@handler("dies", max_attempts=1)
async def dies(job: Job): raise ValueError
"""


async def test_until_empty_runs_what_is_there_and_its_exit_code_tells_of_deaths(
    tmp_path: Path, database: Database, connection: asyncpg.Connection
) -> None:
    write_handlers(tmp_path, MORTAL)

    def run(*arguments: str) -> tuple[int, dict[str, int]]:
        done = howdah("run", *arguments, folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
        [line] = done.stdout.splitlines()
        return done.returncode, json.loads(line)

    assert run("--until-empty") == (0, {"processed": 0, "dead": 0})
    await enqueue_many(connection, *({"kind": "work"} for _ in range(300)))
    later = await enqueue(connection, "strange")
    assert run("--until-empty") == (0, {"processed": 300, "dead": 0})
    assert (await status(connection, later))["state"] == "ready"
    await enqueue_many(connection, {"kind": "dies"}, {"kind": "work"})
    assert run("--until-empty", "--max-seconds", "20") == (1, {"processed": 2, "dead": 1})
    assert run("--max-seconds", "0.1")[0] == 0
    assert await connection.fetchval("select count(*) from howdah.workers") == 0


# -- the other commands ------------------------------------------------------------------------------------------------


async def test_migrate_is_done_once_and_says_so() -> None:
    async with new_database(empty=True) as database:
        pending = await cli("migrate", "--check", url=database)
        assert pending.code == 1
        first = await cli("migrate", url=database)
        assert (first.code, first.out) == (0, pending.out)
        assert "0001_tables" in first.out
        second = await cli("migrate", url=database)
        assert (second.code, second.out) == (0, "up to date\n")
        assert (await cli("migrate", "--check", url=database)).code == 0


async def test_enqueue_prints_the_id_of_a_job_that_a_daemon_then_runs(
    folder: Path, database: Database, daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    def run(*arguments: str) -> str:
        done = howdah("enqueue", *arguments, folder=folder, HOWDAH_DATABASE_URL=database.url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = int(run("work", '{"n": 1}', "--priority", "3", "--subject", "user:1", "--unique-key", "k"))
    assert run("work", "--unique-key", "k") == f"{job} (it was there already)\n"
    await daemon()
    ended = await end_of(connection, job)
    assert (ended["priority"], ended["subject"], ended["result"]) == (3, "user:1", {"echo": {"n": 1}})


async def test_register_tells_the_database_of_the_kinds_without_a_daemon(
    tmp_path: Path, database: Database, connection: asyncpg.Connection
) -> None:
    write_handlers(
        tmp_path,
        """
        class Mail(BaseModel):
            to: str
            copies: int = 1

        @handler("mail", queue="post", priority=4, max_attempts=7, timeout=9)
        async def mail(job: Job[Mail]): ...
        """,
    )
    done = howdah("register", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
    assert (done.returncode, done.stdout) == (0, "registered mail\n")
    job = await enqueue(connection, "mail", {"to": "ada"})
    row = await status(connection, job)
    assert (row["queue"], row["priority"], row["max_attempts"]) == ("post", 4, 7)
    done = howdah("enqueue", "mail", "{}", folder=tmp_path, HOWDAH_DATABASE_URL=database.url)
    assert done.returncode == 1
    assert "'to' is missing" in done.stderr


async def test_check_says_ok_or_what_is_wrong_and_changes_nothing(
    folder: Path, database: Database, connection: asyncpg.Connection
) -> None:
    done = howdah("check", folder=folder, HOWDAH_DATABASE_URL=database.url)
    assert (done.returncode, done.stdout) == (0, "kinds: work\nok\n")
    assert await connection.fetchval("select count(*) from howdah.kinds") == 0
    assert "HOWDAH_DATABASE_URL" in refuses("check", folder=folder)


async def test_healthcheck_asks_the_running_daemon(daemon: StartDaemon, folder: Path) -> None:
    worker = await daemon()
    port = worker.address.rpartition(":")[2]
    assert howdah("healthcheck", "--http-port", port, folder=folder).returncode == 0
    assert howdah("healthcheck", "--ready", folder=folder, HOWDAH_HTTP_PORT=port).returncode == 0
    assert await worker.stop() == 0
    done = howdah("healthcheck", "--http-port", port, folder=folder)
    assert done.returncode == 1
    assert "no answer" in done.stdout


def test_version_is_one_line_and_wrong_usage_exits_2(folder: Path) -> None:
    done = howdah("version", folder=folder)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")
    assert howdah("run", "--no-such-flag", folder=folder).returncode == 2


async def test_the_address_may_stand_in_a_file_or_in_database_url_and_begin_with_postgres(
    folder: Path, database: Database, daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    short = database.url.replace("postgresql://", "postgres://")
    secret = folder / "secret"
    secret.write_text(short + "\n")
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "database_url").write_text(short)
    for variables in (
        {"HOWDAH_DATABASE_URL": short},
        {"DATABASE_URL": short},
        {"HOWDAH_DATABASE_URL_FILE": str(secret)},
        {"CREDENTIALS_DIRECTORY": str(credentials)},
        {"HOWDAH_DATABASE_URL": short, "DATABASE_URL": "postgresql://127.0.0.1:1/wrong"},
    ):
        said = await cli("enqueue", "work", **variables)
        assert said.code == 0, (variables, said.err)
    await daemon(url=short)
    for row in await connection.fetch("select id from howdah.jobs"):
        await end_of(connection, row["id"])


async def test_the_started_line_says_what_runs_where_and_no_password(daemon: StartDaemon, database: Database) -> None:
    worker: Daemon = await daemon(queues="default:3,mail:2")
    [line] = worker.log_events("started")
    assert (line["version"], line["queues"], line["kinds"]) == (__version__, {"default": 3, "mail": 2}, ["work"])
    assert line["address"].startswith("http://127.0.0.1:")
    assert await worker.stop() == 0
    [line] = worker.log_events("stopped")
    assert (line["processed"], line["dead"]) == (0, 0)
    password = urlsplit(database.url).password
    assert password is None or quote(password) not in worker.output()


async def test_leaving_takes_the_workers_row_along(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    worker = await daemon()
    assert await connection.fetchval("select id from howdah.workers") == worker.worker
    assert await worker.stop() == 0
    assert await connection.fetchval("select count(*) from howdah.workers") == 0
