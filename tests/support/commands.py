"""The command line called in the test's own process: what it says, and the code that it leaves with."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner
from support.daemon import clean_environment

from howdah.cli import main

if TYPE_CHECKING:
    from click.testing import Result
    from support.cluster import Database


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The output as --json gives it: an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line that it said of what was wrong; nothing else was said."""
        assert self.out == ""
        [line] = self.err.splitlines()
        assert line.startswith("howdah: ")
        return line.removeprefix("howdah: ")


# It borrows the process's environment and its standard streams: one command at a time.
_turn = threading.Lock()


async def cli(*arguments: str, url: str | Database | None = None, given: str = "", **variables: str) -> Said:
    """Run `howdah` with these arguments on a database, `given` on standard input, and nothing else in its environment."""
    address = {} if url is None else {"HOWDAH_DATABASE_URL": url if isinstance(url, str) else url.url}
    wanted = {"COLUMNS": "100"} | clean_environment(**address, **variables)
    environment: dict[str, str | None] = dict.fromkeys(os.environ, None) | wanted
    # The command has a loop of its own, which the test's loop must not see.
    result = await asyncio.to_thread(_invoke, list(arguments), given, environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def _invoke(arguments: list[str], given: str, environment: dict[str, str | None]) -> Result:
    with _turn:
        return CliRunner().invoke(main, arguments, given, environment, prog_name="howdah")
