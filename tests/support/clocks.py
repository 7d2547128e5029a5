"""Clocks that a test sets: a program under libfaketime sees the machine's time and so many seconds more, from one call to the next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from howdah.embedded.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACES = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)


def find_library() -> Path | None:
    """Give the library that `./dev faults` installs, or None."""
    return next(_found(), None)


def _found() -> Iterator[Path]:
    for place in _PLACES:
        yield from Path("/").glob(place.removeprefix("/"))


class Clock:
    """One clock, which all programs share that were started by its environment. What waits for a span of time is not touched."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # the server may run as another user
        self._folder = folder
        self._file = folder / "clock"
        self.set(0)

    def set(self, ahead: float) -> None:
        """Step to the machine's time and `ahead` seconds more; fewer, if it is negative."""
        new = self._folder / "clock.new"
        new.write_text(f"{ahead:+.3f}\n")
        new.chmod(0o644)
        new.rename(self._file)  # whole at every moment

    @property
    def environment(self) -> dict[str, str]:
        """What makes a program go by this clock."""
        return {
            "LD_PRELOAD": str(find_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def binaries(self) -> Path:
        """Make a folder of PostgreSQL's programs in which the server goes by this clock."""
        real, folder = find_binaries(), self._folder / "bin"
        folder.mkdir()
        (folder / "initdb").symlink_to(real / "initdb")
        words = " ".join(f"{name}='{value}'" for name, value in self.environment.items())
        server = folder / "postgres"
        server.write_text(f'#!/bin/sh\nexec env {words} {real / "postgres"} "$@"\n')
        server.chmod(0o755)
        return folder
