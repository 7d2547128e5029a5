"""Where the database of the running session is: one file in the data directory, true for as long as its writer holds it locked.

Only what serves one folder's developer may read it: `howdah enqueue` and the like fall back to it when no address is set, so that
they never leave the folder's own session for it. A session that has ended, however it ended, is not found: the lock goes with
its process. A file that somebody else wrote is not believed: whoever controls the address reads the payloads.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from howdah.errors import HowdahError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "dev.json"


class Record:
    """The file, held for the length of a `with`. A second session in the same folder is refused."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _NAME
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not (ignored := self._path.with_name(".gitignore")).exists():
            ignored.write_text("*\n", encoding="utf-8")  # a password and a database belong in no repository
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _read(self._descriptor).get("pid", "unknown")
            os.close(self._descriptor)
            raise HowdahError(
                f"howdah dev is already running for {self._path.parent}, as process {held}: stop that one first"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)

    def write(self, url: str) -> None:
        """Let others find the database."""
        text = json.dumps({"pid": os.getpid(), "database_url": url}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)


def find_session(data_dir: Path) -> str | None:
    """Give the address of the database of the session that runs for this data directory; None if there is none."""
    try:
        descriptor = os.open(data_dir / _NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            url = _read(descriptor).get("database_url")
            return url if isinstance(url, str) else None
        return None
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 65536, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
