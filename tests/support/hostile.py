"""What files do to the process that reads them, as functions that a process of handlers/subprocesses.py can be given."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def double(number: int) -> int:
    return 2 * number


def fail(message: str) -> None:
    raise ValueError(message)


def spin(note: str) -> None:
    """Never come back; the note tells which process it is."""
    Path(note).write_text(str(os.getpid()), encoding="ascii")
    while True:
        time.sleep(0.01)


def devour() -> int:
    return len(bytearray(2 * 1024 * 1024 * 1024))


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def passwords() -> list[str]:
    return [name for name in os.environ if name.startswith(("HOWDAH_", "APP_"))]
