"""Hold a folder for one owner and every process of its server.

PostgreSQL's own lock file says nothing during initdb, nor about a server that runs under another user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Self

from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE = 30.0  # seconds for a server without an owner to end


class FolderLock:
    """The lock on a folder. The server's processes inherit `descriptor`, so it is free when the last of them is gone.

    The file holds the owner's process id while there is an owner.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Lock `folder`, or raise EmbeddedError: at once if another process owns it, else when its server stays."""
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_until_free(descriptor, folder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Let go. Whoever comes next waits for the last processes of the server, if there are any, instead of us."""
        os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _wait_until_free(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        owner = os.pread(descriptor, 20, 0).decode()
        if owner and _is_alive(int(owner)):
            raise EmbeddedError(
                f"the embedded PostgreSQL in {folder} is already running for process {owner}: "
                "stop that one, or use another folder",
            )
        if time.monotonic() > deadline:
            raise EmbeddedError(f"an earlier server in {folder} has not ended within {_PATIENCE:g} s")
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
