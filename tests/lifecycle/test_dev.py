"""`howdah dev`: from the README's ten lines to a running job, again on every save, and nothing left behind however it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support.daemon import clean_environment, howdah
from support.eventually import eventually
from support.jobs import enqueue

from howdah.devmode import command as dev_command
from howdah.devmode.record import find_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import asyncpg
    from support.cluster import Database

    Start = Callable[..., "Dev"]

README = Path(__file__).parents[2] / "README.md"
HANDLERS = """
from howdah import Job, handler
from beside import greeting

@handler("hello")
async def hello(job: Job) -> str:
    return greeting

@handler("crunch", runs_in="process")
def crunch(job: Job) -> str:
    return f"{greeting} in {__name__}"

@handler("leave", max_attempts=1)
def leave(job: Job) -> None:
    import os
    os._exit(9)
"""


class Dev:
    """One `howdah dev` whose output goes to a file."""

    def __init__(self, folder: Path, command: str, **variables: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.environment = clean_environment(**variables)
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                shlex.split(command), cwd=folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def said(self, pattern: str, times: int = 1, timeout: float = 30) -> None:
        """Wait until the output has this so many times."""
        try:
            eventually(lambda: len(re.findall(pattern, self.output.read_text())) >= times, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\nnot said {times} times: {pattern}\n{self.output.read_text()}") from error

    def shell(self, line: str) -> str:
        done = subprocess.run(  # noqa: S602 - what a person types in a shell
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done
        return done.stdout.strip()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `howdah dev` in the test's empty folder, by the words of a command line."""
    started: list[Dev] = []

    def start(command: str, **variables: str) -> Dev:
        started.append(Dev(tmp_path, command, **variables))
        return started[-1]

    yield start
    for dev in started:
        dev.process.kill()
        dev.process.wait()
    eventually(lambda: nobody_is_left(tmp_path), timeout=20)


def nobody_is_left(folder: Path) -> bool:
    """Tell whether no process works for this folder: neither a server, which names it, nor a worker, which is in it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_here = (process / "cwd").readlink() == folder
            if is_here or str(folder).encode() in (process / "cmdline").read_bytes():
                return False
        except OSError:
            continue
    return True


def ten_lines() -> tuple[str, str, str]:
    """What the README prints: the file, the command, and what to type in another terminal."""
    section = README.read_text().split("\n## Ten lines\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```(python|sh)\n(.*?)```", section, re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "python", "sh", "sh"]
    install, code, command, enqueue = (text for _, text in blocks)
    assert install == "pip install 'howdah[embedded]'\n"
    assert len([line for _, text in blocks for line in text.splitlines() if line]) == 10
    return code, command, enqueue


def test_the_ten_lines_of_the_readme_run_a_job_and_a_save_changes_what_the_next_one_does(
    start: Start, tmp_path: Path
) -> None:
    code, command, enqueue = ten_lines()
    (tmp_path / "jobs.py").write_text(code)
    dev = start(command)
    dev.said("ready since")
    dev.said(re.escape(f"to enqueue: {enqueue.strip()}"))
    job = dev.shell(enqueue)
    dev.said(rf'hello {job} completed in \d+ ms "Hello you"')

    (tmp_path / "jobs.py").write_text(code.replace("Hello {", "Servus {"))
    dev.said("ready since", times=2)
    job = dev.shell(enqueue)
    dev.said(rf'hello {job} completed in \d+ ms "Servus you"')
    assert dev.shell('psql -AtXc "select count(*) from howdah.job_history" "$(howdah dev --url)"') == "2"

    again = howdah("dev", "jobs.py", folder=tmp_path)
    assert again.returncode == 1
    assert f"already running for {tmp_path}/.howdah, as process {dev.process.pid}" in again.stderr
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(20) == 0
    assert nobody_is_left(tmp_path)
    assert howdah("enqueue", "hello", folder=tmp_path).returncode == 78


async def test_a_file_that_is_broken_is_told_with_its_line_and_mended_by_the_next_save(
    start: Start, tmp_path: Path, database: Database, connection: asyncpg.Connection
) -> None:
    folder = tmp_path / "else where"
    folder.mkdir()
    beside, file = folder / "beside.py", folder / "my-jobs.py"
    beside.write_text("greeting = 'one'\n")
    file.write_text(textwrap.dedent(HANDLERS) + "if True\n")
    dev = start(f"howdah dev 'else where/my-jobs.py' --database-url {database.url}")
    dev.said(r"error: my-jobs.py, line 17: expected ':': if True")
    dev.said("waits for the next save")
    file.write_text(textwrap.dedent(HANDLERS))
    dev.said("ready since")
    dev.said(rf'hello {await enqueue(connection, "hello")} completed in \d+ ms "one"')

    dev.said(rf'crunch {await enqueue(connection, "crunch")} completed in .* "one in my-jobs"')

    # A syntax error leaves the worker alone, also in a module beside the file.
    beside.write_text("greeting = (\n")
    dev.said(r"error: beside.py, line 1: '\(' was never closed")
    dev.said("the code before it runs on")
    dev.said(rf'hello {await enqueue(connection, "hello")} completed in \d+ ms "one"')

    # What only shows when it is run stops the worker, and not the session.
    beside.write_text("greeting = 'two' + 2\n")
    dev.said(r"error: module 'my-jobs.py' cannot be imported: TypeError: .* \(beside.py, line 1\)")
    dev.said("waits for the next save", times=2)
    beside.write_text("greeting = 'two'\n")
    dev.said("ready since", times=2)
    dev.said(rf'hello {await enqueue(connection, "hello")} completed in \d+ ms "two"')

    await enqueue(connection, "leave")
    dev.said("error: the worker died: exit code 9")
    dev.said("ready since", times=3)
    assert dev.process.poll() is None


def test_closing_the_terminal_ends_everything(tmp_path: Path) -> None:
    """In a terminal there is a picture, which fits it; its end is the session's."""
    (tmp_path / "jobs.py").write_text(ten_lines()[0])
    terminal, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # `setsid --ctty` makes the terminal the session's own, so that its end is told by SIGHUP as in life.
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "howdah", "dev", "jobs.py"],
        cwd=tmp_path, env=clean_environment(TERM="xterm"), stdin=tty, stdout=tty, stderr=tty,
    )  # fmt: skip
    os.close(tty)
    os.set_blocking(terminal, False)
    seen = bytearray()

    def shows(words: bytes) -> bool:
        with suppress(BlockingIOError):
            seen.extend(os.read(terminal, 1 << 20))
        return words in seen

    try:
        eventually(lambda: shows(b"howdah enqueue hello"), timeout=30)
        assert b"ready since" in seen
        os.close(terminal)
        assert process.wait(20) == 0
        eventually(lambda: nobody_is_left(tmp_path), timeout=20)
    finally:
        process.kill()
        process.wait()
    assert "database system is shut down" in (tmp_path / ".howdah/postgres/postgres.log").read_text()


def test_kill_9_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(ten_lines()[0])
    dev = start("howdah dev jobs.py")
    dev.said("ready since")
    dev.process.kill()
    dev.process.wait()
    eventually(lambda: nobody_is_left(tmp_path), timeout=20)
    # A session that was killed is not found, although its file is still there.
    assert (tmp_path / ".howdah/dev.json").exists()
    assert find_session(tmp_path / ".howdah") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "which file of handlers"), (("jobs.txt",), "must end in .py"), (("nowhere.py",), "does not exist")],
)
def test_a_file_that_cannot_be_run_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.txt").touch()
    done = CliRunner().invoke(dev_command.dev, arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / ".howdah").exists()
