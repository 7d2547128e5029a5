"""Hosts of a test's own: network namespaces with addresses, on one wire each to the host of the database; root only."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import asyncpg

_SERVER = """
import sys
from pathlib import Path
from howdah.embedded import EmbeddedPostgres

with EmbeddedPostgres(Path(sys.argv[1]), settings={
        "listen_addresses": "*", "unix_socket_directories": sys.argv[2], "fsync": "off", "max_connections": "200"}) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


class Hosts:
    """A database's host and others around it, none of which can reach this machine. A context manager.

    The test itself talks to the database through its socket, which lies in the file system.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._mark = f"hd{id(self) % 100_000}"
        self._folder = Path(tempfile.mkdtemp(prefix="hd-"))
        self._server: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._folder.chmod(0o711)
        sockets = self._folder / "s"
        sockets.mkdir()
        sockets.chmod(0o777)
        _ip("netns", "add", f"{self._mark}db")
        _ip("-n", f"{self._mark}db", "link", "set", "lo", "up")
        for number, name in enumerate(self._names, start=1):
            space = self._mark + name
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip(
                "link",
                "add",
                f"d{space}",
                "netns",
                f"{self._mark}db",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            _ip("-n", f"{self._mark}db", "addr", "add", f"10.77.{number}.1/24", "dev", f"d{space}")
            _ip("-n", space, "addr", "add", f"10.77.{number}.2/24", "dev", "eth0")
            _ip("-n", f"{self._mark}db", "link", "set", f"d{space}", "up")
            _ip("-n", space, "link", "set", "eth0", "up")
        self._server = subprocess.Popen(
            [*self.on("db"), sys.executable, "-c", _SERVER, str(self._folder / "pg"), str(sockets)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        self.port = int(self._server.stdout.readline())
        # What comes over the wires is let in without a password: nobody else has an end of them.
        with (self._folder / "pg" / "cluster" / "pg_hba.conf").open("a") as access:
            access.write("host all all 10.77.0.0/16 trust\nlocal all all trust\n")
        return self

    def __exit__(self, *failure: object) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.close()
            self._server.wait(20)
            self._server.stdout.close()
        for name in ("db", *self._names):
            subprocess.run(["ip", "netns", "del", self._mark + name], check=False)

    def on(self, name: str) -> tuple[str, ...]:
        """Give what a command is begun with to run on a host."""
        return ("ip", "netns", "exec", self._mark + name)

    def url(self, name: str) -> str:
        """Give the database's address as seen from a host."""
        return f"postgresql://postgres@10.77.{self._names.index(name) + 1}.1:{self.port}/postgres"

    async def connect(self) -> asyncpg.Connection:
        """Connect past all wires."""
        assert self._server is not None
        password = next((self._folder / "pg").glob("*password*")).read_text()
        return await asyncpg.connect(
            host=str(self._folder / "s"), port=self.port, user="postgres", password=password, database="postgres"
        )

    def cut(self, name: str) -> None:
        """Let nothing through between a host and the database, in silence: sockets stay open."""
        _ip("-n", self._mark + name, "link", "set", "eth0", "down")

    def heal(self, name: str) -> None:
        """Let everything through again."""
        _ip("-n", self._mark + name, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
