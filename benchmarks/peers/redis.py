"""Redis for the peer that lives there: of the system, or of apt where this is root; its log is written to disk once a second."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from howdah.embedded.process import BoundProcess
from peers.install import folder_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10


@contextmanager
def redis_running(*, wanted: bool) -> Iterator[str]:
    """Run Redis in a folder of its own and give its address; an empty one where there is no Redis, with the reason."""
    program = _program() if wanted else None
    if program is None:
        if wanted:
            print("what needs Redis is left out: there is no redis-server, and apt gives none", file=sys.stderr)
        yield ""
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    folder = folder_for("redis")
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "dir": folder,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = BoundProcess([program, *words], log=folder / "log")
    try:
        _await(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _program() -> str | None:
    found = shutil.which("redis-server")
    apt = shutil.which("apt-get")
    if found is None and apt is not None and os.geteuid() == 0:
        # Installed, not started: the run starts its own.
        environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
        for words in (("update", "-q"), ("install", "-q", "-y", "--no-install-recommends", "redis-server")):
            subprocess.run([apt, *words], capture_output=True, check=False, env=environment, timeout=300)  # noqa: S603
        found = shutil.which("redis-server")
    return found


def _await(port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"Redis does not answer on port {port}")
