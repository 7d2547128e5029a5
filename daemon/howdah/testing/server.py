"""The server of a test run, from the side of a process that uses it: asked for once, let go at the process's end."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import HowdahError
from howdah.testing.databases import make_template, url_of
from howdah.testing.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PATIENCE = 90.0  # seconds for a server to start; another process of the run may make the data meanwhile


class TestServer:
    """Joins the run `run`: the first of its processes starts the keeper and makes the template, the others wait for them."""

    __test__ = False

    def __init__(self, run: str) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"howdah-tests-{os.geteuid()}-{run}"
        self._template_name = f"howdah_template_{run}"
        self._users = -1
        self._keeper: subprocess.Popen[bytes] | None = None

    def join(self, migrations: Iterable[Path], prepare: Callable[[str], object]) -> str:
        """Give the template's address; `prepare` is called with it once a run. Raises HowdahError."""
        self._users = self._enter()
        with (self._folder / "first").open("w") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            server = self._server_url()
            made = self._folder / "template"
            template = url_of(server, self._template_name)
            if not made.exists():
                try:
                    wait_for(make_template(server, self._template_name, migrations))
                except (OSError, asyncpg.PostgresError) as error:
                    raise HowdahError(f"no template on {_origin()}: {error}") from error
                prepare(template)
                made.touch()
        return template

    def _enter(self) -> int:
        """Take the users' lock in the run's folder; one whose keeper is leaving is made anew."""
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.stat().st_uid != os.geteuid():
                raise HowdahError(f"{self._folder} is somebody else's")
            with suppress(FileNotFoundError):
                users = os.open(self._folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(users, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    if os.fstat(users).st_ino == (self._folder / "users").stat().st_ino:
                        return users
                os.close(users)

    def _server_url(self) -> str:
        """Give the server's address, starting the keeper if nobody has."""
        told = self._folder / "server.json"
        if not told.exists():
            with (self._folder / "keeper.log").open("wb") as log:
                self._keeper = subprocess.Popen(  # noqa: S603  # our own module
                    [sys.executable, "-m", "howdah.testing.keeper", str(self._folder), self._template_name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for pytest; the keeper ends after it
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            deadline = time.monotonic() + _PATIENCE
            while not told.exists():
                if self._keeper.poll() is not None and not told.exists():
                    raise HowdahError(f"the keeper of the test server ended: {self._log()}")
                if time.monotonic() > deadline:
                    raise HowdahError(f"no test server after {_PATIENCE:g} s: {self._log()}")
                time.sleep(0.02)
        facts: dict[str, str] = json.loads(told.read_text(encoding="utf-8"))
        if "error" in facts:
            raise HowdahError(facts["error"])
        return facts["url"]

    def leave(self) -> None:
        """Let go; the process that started the keeper waits for it when no other process uses the server."""
        if self._users < 0:
            return
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        os.close(self._users)
        self._users = -1
        if self._keeper is None:
            return
        if alone:
            self._keeper.wait(_PATIENCE)
        else:
            self._keeper.returncode = 0  # it outlives us by intent: no warning about that

    def _log(self) -> str:
        text = (self._folder / "keeper.log").read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"


def _origin() -> str:
    return (
        "the server that HOWDAH_TEST_DATABASE_URL names"
        if "HOWDAH_TEST_DATABASE_URL" in os.environ
        else "the embedded server"
    )
