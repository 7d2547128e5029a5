"""The file and the modules beside it: when one was saved, and whether it can be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from watchfiles import awatch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from watchfiles import Change


async def saves(file: Path, stop: asyncio.Event) -> AsyncIterator[list[Path]]:
    """Give the modules that were saved, whenever some were.

    Watched is folder by folder: to watch all that lies below would take long in a home directory, and never rest where the
    database writes.
    """
    while not stop.is_set():
        folders = watched(file)
        async for changes in awatch(*folders, watch_filter=_is_module, recursive=False, stop_event=stop):
            yield sorted({Path(path) for _, path in changes})
            if watched(file) != folders:
                break  # a package came or went: watch what is there now


def watched(file: Path) -> list[Path]:
    """Give the folders whose modules the file may import from beside it: its own, and those below that hold modules."""
    return [file.parent, *_packages(file.parent)]


def _packages(folder: Path) -> list[Path]:
    found = []
    for below in sorted(folder.iterdir()):
        if below.name.isidentifier() and below.is_dir() and any(below.glob("*.py")):
            found += [below, *_packages(below)]
    return found


def _is_module(_change: Change, path: str) -> bool:
    return path.endswith(".py")


def syntax_error(paths: list[Path]) -> str | None:
    """Say which of these cannot be read as Python, and where; None if all can. Nothing is run."""
    for path in paths:
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            shown = (error.text or "").strip()
            return f"{path.name}, line {error.lineno}: {error.msg}" + (f": {shown}" if shown else "")
        except (OSError, ValueError) as error:
            if path.exists():
                return f"{path.name}: {error}"
    return None
