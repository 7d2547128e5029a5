"""The picture of a session: queues, jobs, log and what to type, fitted to the terminal."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from howdah.devmode.facts import Facts, example

if TYPE_CHECKING:
    from collections import deque

    from rich.console import RenderableType

# For breaking lines only: nothing is ever written to it.
_PLAIN = Console(width=80)
_COLORS = {"completed": "green", "dead": "red", "cancelled": "yellow", "retrying": "yellow", "running": "cyan"}
_LOG_COLORS = {"warning": "yellow", "error": "red", "critical": "red", "debug": "dim"}


@dataclass
class Session:
    """What is known besides the database's facts."""

    file: str
    log: deque[str]
    facts: Facts = field(default_factory=Facts)
    phase: str = "starting"
    ready: bool = False
    problem: str | None = None


def render(session: Session, width: int, height: int) -> RenderableType:
    """Draw it all in so many columns and lines. What is least urgent gives way first: log, ended jobs, queues."""
    facts = session.facts
    top: list[RenderableType] = [_head(session)]
    used = 2
    problem = session.problem or (f"the database is away: {facts.away}" if facts.away else None)
    if problem:
        text = Text(problem, style="bold red", overflow="fold")
        top += [Text(), text]
        used += 1 + min(len(text.wrap(_PLAIN, width)), 6)
    foot = _foot(facts, width, most=height // 7)
    room = height - used - len(foot) - 4
    queues = facts.queues[: max(room // 3, 1)]
    room -= 1 + len(queues)
    rows = max(min(len(facts.live) + len(facts.ended), room - 1 - min(len(session.log), 4)), 2)
    live = facts.live[: max(rows // 2, rows - len(facts.ended), 1)]
    ended = list(facts.ended)[::-1][: max(rows - len(live), 0)]
    lines = list(session.log)[-max(room - 1 - rows, 1) :]
    return Group(
        *top,
        Text(),
        _queues(queues, ready=session.ready),
        Text(),
        _jobs(live, ended),
        Text(),
        *(_log_line(line) for line in lines or ["nothing logged yet"]),
        *foot,
    )


def _head(session: Session) -> Text:
    counts = session.facts.counts
    told = ", ".join(f"{counts[state]} {state}" for state in ("completed", "dead", "cancelled") if counts.get(state))
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("howdah dev ", "bold")
    head.append(session.file, "bold cyan")
    head.append(f"  {session.phase}", "red" if session.problem else "green")
    if told:
        head.append(f"  {told}", "dim")
    return head


def _queues(rows: list[dict[str, Any]], *, ready: bool) -> RenderableType:
    if not rows:
        return Text("no jobs wait or run", "dim")
    table = _table()
    for name in ("queue", "ready", "running", "retrying", "later"):
        table.add_column(name, justify="left" if name == "queue" else "right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        numbers = [str(row[name] or "·") for name in ("ready", "running", "retrying", "later")]
        unserved = ready and row["unserved"]
        table.add_row(
            Text(row["queue"]),
            *numbers,
            Text(f"no worker runs {', '.join(unserved)} here" if unserved else "", "yellow"),
        )
    return table


def _jobs(live: list[dict[str, Any]], ended: list[dict[str, Any]]) -> RenderableType:
    if not live and not ended:
        return Text("no job has run yet", "dim")
    table = _table()
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in (*live, *ended):
        state = row["state"]
        table.add_row(
            str(row["id"]), Text(row["kind"]), Text(state, _COLORS.get(state, "")), took(row), Text(about(row))
        )
    return table


def took(row: dict[str, Any]) -> str:
    """Say how long a job took or has been running; for one that is tried again, when."""
    if row["state"] == "retrying":
        return "now" if row["due"] <= 0 else f"in {span(row['due'])}"
    seconds = row["running"] if row["state"] == "running" else row["took"]
    return "" if seconds is None else span(seconds)


def about(row: dict[str, Any]) -> str:
    """Say what came of a job, or is coming: the error's last line, the result, the progress."""
    attempt = (
        f" ({row['attempt']} of {row['max_attempts']})" if row["attempt"] > 1 or row["state"] == "retrying" else ""
    )
    if row["state"] == "completed":
        return (row["result"] or "") + attempt
    if row["state"] == "running":
        return (row["progress"] or "") + attempt
    if row["state"] == "cancelled":
        return row["cancel_reason"] or ""
    lines = (row["error"] or "").strip().splitlines()
    return (lines[-1] if lines else "") + attempt


def span(seconds: float) -> str:
    """Give a time for people: 8 ms, 1.2 s, 3 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def enqueue_lines(facts: Facts) -> list[str]:
    """Give the command that enqueues a job of each kind, to be copied; another address that is set must not get it."""
    elsewhere = any(
        os.environ.get(name) for name in ("HOWDAH_DATABASE_URL", "DATABASE_URL", "HOWDAH_DATABASE_URL_FILE")
    )
    command = 'howdah enqueue --database-url "$(howdah dev --url)"' if elsewhere else "howdah enqueue"
    return [f"{command} {kind} {_quoted(example(schema))}".rstrip() for kind, schema in facts.kinds]


def _quoted(payload: str) -> str:
    return "" if payload == json.dumps({}) else "'" + payload.replace("'", "'\\''") + "'"


def _foot(facts: Facts, width: int, *, most: int) -> list[RenderableType]:
    """Give what to type, whole: a line that is cut cannot be copied. After the first command, `most` lines at most."""
    lines: list[RenderableType] = []
    for command in enqueue_lines(facts):
        wrapped = Text(command, "bold").wrap(_PLAIN, width)
        if lines and len(lines) + len(wrapped) > most:
            break
        lines.extend(wrapped)
    hint = Text(
        "type these in another terminal, in this folder; Ctrl-C ends the session",
        "dim",
        no_wrap=True,
        overflow="ellipsis",
    )
    return [Text(), *lines, Text('psql "$(howdah dev --url)"', "bold"), hint]


def _log_line(line: str) -> Text:
    words = line.split(None, 2)
    color = _LOG_COLORS.get(words[1], "") if len(words) > 1 else ""
    return Text(line, color, no_wrap=True, overflow="ellipsis")


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
