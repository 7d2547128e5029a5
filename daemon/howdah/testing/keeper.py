"""Keeps the server of a test run for as long as some process of the run uses it: `python -m howdah.testing.keeper FOLDER NAME`.

The processes of a run (pytest-xdist has many) come and go in any order, and may be killed. Each holds a shared lock on
`users` in the run's folder; the keeper ends when it can have that lock for itself, which is also when the last user died.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from howdah.embedded import EmbeddedPostgres
from howdah.testing.databases import SERVER_SETTINGS, Database, drop, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(folder: Path, template: str) -> None:
    """Tell users of a server until the last of them is gone."""
    given = os.environ.get("HOWDAH_TEST_DATABASE_URL")
    try:
        with own_server() if given is None else given_server(given, template) as url:
            tell(folder, {"url": url})
            wait_for_users_to_leave(folder)
    except Exception as error:
        tell(folder, {"error": str(error) or type(error).__name__})
        raise


@contextmanager
def own_server() -> Iterator[str]:
    """Run a server for the length of a `with`; nothing of it stays."""
    data = Path(tempfile.mkdtemp(prefix="howdah-tests-"))
    data.chmod(0o711)  # the server may run as another user
    try:
        with EmbeddedPostgres(data / "postgres", settings=SERVER_SETTINGS) as server:
            yield server.url()
    finally:
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def given_server(url: str, template: str) -> Iterator[str]:
    """Use a server that runs already, and take the template away at the end."""
    try:
        yield url
    finally:
        with suppress(Exception):  # the server may be gone by now, and nobody is left to tell
            asyncio.run(drop(Database(url_of(url, template), template)))


def tell(folder: Path, facts: dict[str, str]) -> None:
    """Write what users wait for, whole or not at all."""
    made = folder / "server.json.new"
    made.touch(mode=0o600)
    made.write_text(json.dumps(facts), encoding="utf-8")
    made.rename(folder / "server.json")


def wait_for_users_to_leave(folder: Path) -> None:
    """Return when no process holds the users' lock any more; whoever comes later begins anew."""
    with (folder / "users").open("rb") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        shutil.rmtree(folder)  # still under the lock: whoever waits for it sees that the file is not there any more


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
