"""The table of docs/reliability.md, made of what a run of the faults has counted: `./dev faults --table`."""

from __future__ import annotations

import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- the table: made by ./dev faults --table -->", "<!-- the table's end -->"

#: The order of the parts on the page.
PARTS = ("Process", "Event loop", "Connections", "Server", "Poolers", "Time", "Data", "Versions", "Security", "Users")


def read(folder: Path) -> list[dict[str, Any]]:
    """Give the figures of a run in the page's order."""
    lines = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    if unknown := {line["part"] for line in lines} - set(PARTS):
        sys.exit(f"no such part of the page: {', '.join(sorted(unknown))}")
    return sorted(lines, key=lambda line: (PARTS.index(line["part"]), line["fault"], line["test"]))


def render(lines: list[dict[str, Any]]) -> str:
    """Give the tables, one a part, and the sums under them."""
    text = []
    for part, of_part in groupby(lines, key=lambda line: line["part"]):
        text += [f"### {part}", ""]
        text += ["| fault | promised | test | jobs | faults | lost | doubled | longest recovery |"]
        text += ["|---|---|---|--:|--:|--:|--:|--:|"]
        text += [_row(line) for line in of_part]
        text += [""]
    sums = {name: sum(line[name] for line in lines) for name in ("jobs", "faults", "lost", "doubled")}
    text += [
        f"In all: {sums['jobs']:,} jobs, {sums['faults']:,} faults, {sums['lost']} lost, {sums['doubled']} doubled.",
    ]
    return "\n".join(text)


def _row(line: dict[str, Any]) -> str:
    file, _, name = line["test"].partition("::")
    recovery = "" if line["recovery"] is None else f"{line['recovery']:.1f} s"
    test = f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"
    counts = " | ".join(f"{line[of]:,}" if line["jobs"] else "" for of in ("jobs", "faults", "lost", "doubled"))
    return f"| {line['fault']} | {line['promise']} | {test} | {counts} | {recovery} |"


def main(folder: str) -> None:
    """Put the figures of the run in `folder` into the page."""
    lines = read(Path(folder))
    if not lines:
        sys.exit(f"no figures in {folder}")
    page = PAGE.read_text(encoding="utf-8")
    made, places = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{render(lines)}\n\n{END}", page, flags=re.DOTALL
    )
    if places != 1:
        sys.exit(f"{PAGE}: the place of the table is not there")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
