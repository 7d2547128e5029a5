"""Start a program that ends when this process does, however that happens, `kill -9` included."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from howdah.embedded.identity import Identity

_CHILD = str(Path(__file__).with_name("child.py"))


class BoundProcess:
    """A running program, bound to this process by the kernel's death signal or by a supervisor that watches a pipe.

    It writes to the file `log`, inherits the descriptor `lock`, and has a clean environment and no folder of its own unless
    they are given.
    """

    def __init__(
        self,
        command: list[str],
        *,
        log: Path,
        identity: Identity | None = None,
        lock: int | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str = "/",
    ) -> None:
        inherited = [lock] if lock is not None else []
        ours = []
        lifeline = "-"
        self._lifeline: int | None = None
        if not kernel_reports_our_death():
            watched, self._lifeline = os.pipe()
            ours.append(watched)
            lifeline = str(watched)
        prefix, account = (identity.prefix, identity.account) if identity is not None else ((), "-")
        child = (sys.executable, "-I", "-S", _CHILD, str(os.getpid()), lifeline, account)
        try:
            with open(log, "ab", opener=_for_us_alone) as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own script and the binaries that were found
                    (*prefix, *child, *command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env=_environment() if environment is None else environment,
                    pass_fds=[*inherited, *ours],
                    start_new_session=True,  # Ctrl-C in a terminal is for us: the server stops after us, not with us
                )
        finally:
            for descriptor in ours:
                os.close(descriptor)

    def is_running(self) -> bool:
        """Tell whether the program still runs."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end and return the exit code, or None if it has not come within `timeout` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; a supervisor passes on SIGINT and SIGQUIT."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the program with SIGKILL and wait until it is gone. A supervisor takes SIGTERM for that order."""
        self.signal(signal.SIGKILL if self._lifeline is None else signal.SIGTERM)
        self.wait()


def kernel_reports_our_death() -> bool:
    """Tell whether the death signal can be used: it is Linux's, and comes already when the launching *thread* ends."""
    return sys.platform == "linux" and threading.get_native_id() == os.getpid()


def _environment() -> dict[str, str]:
    """Return a clean environment: no PGDATA or PGPORT of somebody's shell, English messages, UTC."""
    passed_on = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {"LC_ALL": "C", "TZ": "UTC"} | {name: os.environ[name] for name in passed_on if name in os.environ}


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)  # the log quotes statements
