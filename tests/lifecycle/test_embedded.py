"""The embedded PostgreSQL keeps its data, ends with its owner and works for every user: with real servers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.eventually import eventually

import howdah.embedded
from howdah.embedded import EmbeddedPostgres, find_binaries
from howdah.embedded import server as server_module
from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(howdah.embedded.__file__).parents[1]
FAST = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "20"}
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OWNER = f"""
import signal, sys
from pathlib import Path
from howdah.embedded import EmbeddedPostgres, process
if "supervised" in sys.argv:
    process.kernel_reports_our_death = lambda: False
server = EmbeddedPostgres(Path(sys.argv[1]), settings={FAST!r})
server.start()
print(server.pid, server.url(), flush=True)
signal.pause()
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def refused_unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `unshare` fail, as it does in most containers."""
    program = tmp_path / "refusing" / "unshare"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def query(url: str, statement: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def all_processes_are_gone(data_dir: Path) -> bool:
    """Every process of the server holds the lock's file description."""
    with (data_dir / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def was_shut_down(data_dir: Path) -> bool:
    last = (data_dir / "postgres.log").read_text().strip().splitlines()[-1]
    return "database system is shut down" in last


def start_owner(data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, data_dir, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
    )


@pytest.fixture
def owner(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that owns a running server, and the server's address."""
    with start_owner(data_dir, getattr(request, "param", "")) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().split()[1]
        finally:
            process.kill()


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        query(server.url(), "create table kept as select 42 as answer")
    assert was_shut_down(data_dir)
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select answer from kept") == 42


def test_a_crash_and_an_immediate_restart_lose_nothing_committed(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        address = server.url()
        query(address, "create table kept as select 1 as number")
        server.kill()
        server.start()
        assert server.url() == address
        query(address, "insert into kept values (2)")
        server.restart(immediate=True)
        assert query(address, "select sum(number) from kept") == 3


def test_the_server_listens_on_loopback_and_wants_the_password(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "show listen_addresses") == "127.0.0.1"
        assert query(server.url("template1"), "select current_database()") == "template1"
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(f"postgresql://postgres:guess@127.0.0.1:{server.port}/postgres", "select 1")
        assert (data_dir / "password").stat().st_mode & 0o077 == 0


def test_names_of_databases_are_quoted_in_the_address(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        query(server.url(), 'create database "odd/na me?"')
        assert query(server.url("odd/na me?"), "select current_database()") == "odd/na me?"


@pytest.mark.parametrize("owner", ["", "supervised"], indirect=True)
def test_kill_9_of_the_owner_shuts_the_server_down(owner: tuple[subprocess.Popen[str], str], data_dir: Path) -> None:
    process, address = owner
    query(address, "create table kept as select 42 as answer")
    process.kill()
    process.wait()
    eventually(lambda: all_processes_are_gone(data_dir))
    assert was_shut_down(data_dir)
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select answer from kept") == 42


@as_root
@pytest.mark.usefixtures("refused_unshare")
def test_root_without_user_namespaces_gets_a_server_that_ends_with_its_owner(
    data_dir: Path,
    request: pytest.FixtureRequest,
) -> None:
    process, _ = request.getfixturevalue("owner")
    assert (data_dir / "cluster").stat().st_uid != 0
    process.kill()
    process.wait()
    eventually(lambda: all_processes_are_gone(data_dir))
    assert was_shut_down(data_dir)


@as_root
def test_root_may_gain_and_lose_user_namespaces_and_keeps_the_data(
    data_dir: Path,
    request: pytest.FixtureRequest,
) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        query(server.url(), "create table kept as select 42 as answer")
    request.getfixturevalue("refused_unshare")
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select answer from kept") == 42


@pytest.mark.parametrize("owner", ["", "supervised"], indirect=True)
def test_a_start_right_after_kill_9_waits_for_the_old_server(
    owner: tuple[subprocess.Popen[str], str],
    data_dir: Path,
) -> None:
    process, _ = owner
    process.kill()
    process.wait()
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select 42") == 42


def test_a_second_owner_is_refused_and_told_who_the_first_is(
    owner: tuple[subprocess.Popen[str], str],
    data_dir: Path,
) -> None:
    process, address = owner
    with pytest.raises(EmbeddedError, match=f"already running for process {process.pid}") as caught:
        EmbeddedPostgres(data_dir).start()
    assert str(data_dir) in str(caught.value)
    assert query(address, "select 42") == 42


def test_a_second_object_in_the_same_process_is_refused_too(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        with pytest.raises(EmbeddedError, match="already running"):
            EmbeddedPostgres(data_dir).start()
        with pytest.raises(EmbeddedError, match="already started"):
            server.start()
        assert query(server.url(), "select 42") == 42


def test_a_server_started_by_a_thread_outlives_the_thread(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings=FAST)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        # A shutdown would end this session before its half second is over.
        assert query(server.url(), "select 42 from pg_sleep(0.5)") == 42
    finally:
        server.stop()
    assert was_shut_down(data_dir)


def test_initdb_is_done_again_when_its_owner_was_killed_in_the_middle(data_dir: Path) -> None:
    with start_owner(data_dir) as process:
        eventually((data_dir / "cluster.init" / "base").exists)
        process.kill()
    assert not (data_dir / "cluster").exists()
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select 42") == 42


def test_what_a_killed_initdb_left_is_swept_away(data_dir: Path) -> None:
    remains = data_dir / "cluster.init"
    remains.mkdir(parents=True)
    (remains / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select 42") == 42
    assert not remains.exists()


def test_a_refused_setting_is_reported_with_the_last_lines_of_the_log(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings={**FAST, "work_mem": "plenty"})
    with pytest.raises(EmbeddedError, match='invalid value for parameter "work_mem"'):
        server.start()
    assert all_processes_are_gone(data_dir)


def test_a_given_port_that_is_taken_is_an_error_and_a_chosen_one_is_chosen_again(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port {port}"):
            EmbeddedPostgres(data_dir, port=port, settings=FAST).start()

        free_port = server_module._free_port
        offered = [port]
        monkeypatch.setattr(server_module, "_free_port", lambda: offered.pop() if offered else free_port())
        with EmbeddedPostgres(data_dir, settings=FAST) as server:
            assert server.port != port
            assert query(server.url(), "select 42") == 42


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"cannot be started: .*file"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()


def test_data_of_another_release_is_refused_with_both_named(data_dir: Path) -> None:
    EmbeddedPostgres(data_dir, settings=FAST).__enter__().stop()
    release = data_dir / "cluster" / "PG_VERSION"
    current = release.read_text().strip()
    release.write_text("9\n")
    with pytest.raises(EmbeddedError, match=rf"made by PostgreSQL 9, and .* holds release {current}"):
        EmbeddedPostgres(data_dir).start()


def test_a_folder_that_holds_something_else_is_left_alone(data_dir: Path) -> None:
    precious = data_dir / "cluster" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("chapter one")
    with pytest.raises(EmbeddedError, match="no PostgreSQL cluster"):
        EmbeddedPostgres(data_dir).start()
    assert precious.read_text() == "chapter one"


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / ("long" * 40), settings=FAST) as server:
        assert query(server.url(), "select 42") == 42


def test_the_shell_s_postgres_variables_do_not_leak_in(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres(data_dir, settings=FAST) as server:
        assert query(server.url(), "select 42") == 42


@as_root
def test_an_ordinary_user_needs_no_help(place_of_nobody: Path, python_of_nobody: str) -> None:
    data_dir = place_of_nobody / "data"
    with subprocess.Popen(
        [python_of_nobody, "-c", OWNER, data_dir],
        stdout=subprocess.PIPE,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(place_of_nobody / "source"),
            "HOWDAH_POSTGRES_BIN": str(find_binaries()),
        },
    ) as process:
        assert process.stdout
        address = process.stdout.readline().split()[1]
        assert query(address, "select 42") == 42
        assert (data_dir / "cluster").stat().st_uid == NOBODY
        process.send_signal(signal.SIGKILL)
    eventually(lambda: all_processes_are_gone(data_dir))
    assert was_shut_down(data_dir)


@pytest.fixture
def place_of_nobody() -> Iterator[Path]:
    """A folder that an ordinary user owns, with the sources in it, because the checkout may be closed to that user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        package = Path(folder, "source", "howdah")
        shutil.copytree(SOURCE / "embedded", package / "embedded")
        shutil.copy(SOURCE / "errors.py", package)
        (package / "__init__.py").touch()
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


@pytest.fixture
def python_of_nobody() -> str:
    """A Python that an ordinary user may run, with binaries of PostgreSQL that he may run."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        question = f"import sys, os; sys.exit(sys.version_info < (3, 11) or not os.access({str(find_binaries())!r}, 1))"
        try:
            answer = subprocess.run(
                [python, "-c", question], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False
            )
        except OSError:
            continue
        if answer.returncode == 0:
            return python
    pytest.skip("no Python and no binaries here that an ordinary user can run")
