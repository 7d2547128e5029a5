"""A standby of a server: made from a base backup, following its primary, to be promoted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import asyncpg
from support.eventually import aeventually

from howdah.embedded.binaries import find_binaries
from howdah.embedded.identity import choose_identity, give
from howdah.embedded.process import BoundProcess
from howdah.embedded.server import _free_port

if TYPE_CHECKING:
    from pathlib import Path

    from howdah.embedded import EmbeddedPostgres

#: What a primary needs beside its defaults.
PRIMARY = {"wal_level": "replica", "max_wal_senders": "5", "wal_keep_size": "512MB", "fsync": "off"}


class Standby:
    """An async context manager. `url` is its address; it reads only until it is promoted."""

    def __init__(self, primary: EmbeddedPostgres, folder: Path) -> None:
        self._primary = urlsplit(primary.url())
        self._folder = folder
        self._data = folder / "standby"
        self.port = _free_port()
        self._process: BoundProcess | None = None

    @property
    def url(self) -> str:
        """The address of the standby."""
        return self._primary._replace(netloc=f"{self._login}@127.0.0.1:{self.port}").geturl()

    @property
    def either(self) -> str:
        """The address that leads to whichever of the two is the primary."""
        hosts = f"127.0.0.1:{self._primary.port},127.0.0.1:{self.port}"
        return self._primary._replace(netloc=f"{self._login}@{hosts}", query="target_session_attrs=read-write").geturl()

    @property
    def _login(self) -> str:
        return f"{self._primary.username}:{self._primary.password}"

    async def __aenter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o711)
        binaries = find_binaries().absolute()
        identity = choose_identity(binaries, self._folder)
        self._data.mkdir(mode=0o700)
        give(self._data, identity)
        log = self._folder / "standby.log"
        source = self._primary._replace(path="").geturl()
        backup = BoundProcess(
            [str(binaries / "pg_basebackup"), "-d", source, "-D", str(self._data), "-R", "-X", "stream", "-c", "fast", "--no-sync"],
            identity=identity, log=log,
        )  # fmt: skip
        assert backup.wait() == 0, log.read_text()
        self._process = BoundProcess(
            [str(binaries / "postgres"), "-D", str(self._data), "-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1",
             "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "hot_standby=on"],
            identity=identity, log=log,
        )  # fmt: skip
        await aeventually(self._answers, timeout=30)
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    async def _answers(self) -> bool:
        connection = await asyncpg.connect(self.url, timeout=2)
        await connection.close()
        return True

    async def connect(self) -> asyncpg.Connection:
        """Connect to it."""
        return await asyncpg.connect(self.url)

    async def promote(self) -> None:
        """Make it the primary."""
        connection = await self.connect()
        try:
            assert await connection.fetchval("select pg_promote(true, 30)")
        finally:
            await connection.close()
