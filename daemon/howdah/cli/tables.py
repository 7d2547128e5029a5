"""How jobs look on a terminal: tables and sheets, whose text can neither drive the terminal nor be taken for markup."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from howdah.anyjson import write
from howdah.cli.words import ago, clock, counted, duration, listed, one_line, safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    Row = Mapping[str, Any]

STATE_STYLES = {
    "ready": "blue",
    "running": "bold cyan",
    "scheduled": "bright_black",
    "waiting": "bright_black",
    "retrying": "magenta",
    "completed": "green",
    "dead": "bold red",
    "cancelled": "yellow",
}
#: How wide a listing is where no terminal tells.
WIDE = 200
#: From here on there is room for what is good to know.
ROOMY = 96


def show(*parts: RenderableType, cut: bool = True) -> None:
    """Print, in colours on a terminal; `cut`: what does not fit ends in an ellipsis, else the terminal breaks the line."""
    terminal = sys.stdout.isatty()
    width = None if terminal or "COLUMNS" in os.environ else WIDE
    console = Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)
    # By way of a string: click writes it, and tells when nobody reads any more.
    with console.capture() as captured:
        for part in parts:
            if isinstance(part, Text) and cut:
                console.print(part, no_wrap=True, overflow="ellipsis")
            else:
                console.print(part, soft_wrap=isinstance(part, Text))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), color=None if terminal else False)


def columns() -> int:
    """Tell how wide a listing may be."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE).width


def jobs_table(rows: Sequence[Row]) -> Table:
    """Make the listing: a line a job, and at its end what matters most about it."""
    roomy = columns() >= ROOMY
    table = _table("job", "kind", "state", "try", "when")
    table.columns[0].justify = "right"
    table.columns[1].max_width = 28 if roomy else 18
    if roomy:
        table.add_column("took", justify="right", no_wrap=True)
        table.add_column("queue", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("about", no_wrap=True, overflow="ellipsis", ratio=1)
    table.expand = True
    for row in rows:
        cells = [
            Text(str(row["id"])),
            _text(row["kind"]),
            state_text(row["state"]),
            Text(f"{row['attempt']}/{row['max_attempts']}", style="" if row["attempt"] > 1 else "bright_black"),
            Text(when(row)),
        ]
        if roomy:
            cells += [Text(duration(row["duration"])), _text(row["queue"])]
        table.add_row(*cells, _text(about(row)))
    return table


def groups_table(rows: Sequence[Row], by: str) -> Table:
    """Make a count of jobs by something."""
    table = _table("jobs", by, "states", "first", "last", "newest")
    table.columns[0].justify = table.columns[-1].justify = "right"
    for row in rows:
        states = Text(", ").join(state_text(state) for state in row["states"])
        name = row["worker_name"] or row["name"] or "none"
        table.add_row(
            f"{row['jobs']:,}",
            state_text(name) if by == "state" else _text(name),
            states,
            ago(row["first_at"], row["asked_at"]),
            ago(row["last_at"], row["asked_at"]),
            str(row["example"]),
        )
    return table


def errors_list(rows: Sequence[Row]) -> Iterable[Text]:
    """Make two lines of each sort of failure: how often, when and where; then the error itself."""
    width = max([len(f"{row['jobs']:,}") for row in rows], default=0)
    for row in rows:
        last, first = ago(row["last_at"], row["asked_at"]), ago(row["first_at"], row["asked_at"])
        head = Text()
        head.append(f"{row['jobs']:>{width},}", style="bold red")
        head.append(f"  {row['name']}", style="bold")
        head.append(f"  last {last}" if row["jobs"] == 1 or first == last else f"  last {last}, first {first}")
        head.append(f"  {one_line(listed(row['kinds'], 2))}", style="cyan")
        head.append(f"  newest {row['example']}", style="bright_black")
        yield head
        error = f"{row['error_type'] or 'error'}: {row['signature'] or ''}"
        yield Text(" " * (width + 2) + one_line(error))


def job_sheet(row: Row) -> Iterable[RenderableType]:
    """Make the sheet of one job: a line a fact, then payload, progress, result, and every error with its stack."""
    now: datetime = row["asked_at"]
    head = Text.assemble((f"job {row['id']}", "bold"), "  ", _text(row["kind"]), "  ", state_text(row["state"]))
    yield head
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bright_black", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(row, now):
        if value:
            facts.add_row(name, _text(value))
    yield facts
    for name in ("payload", "headers", "progress", "result"):
        if row[name] is not None:
            yield Text(f"\n{name}", style="bright_black")
            yield Text(safe(json_text(row[name], indent=True), keep="\n"))
    if row["steps"]:
        yield Text("\nsteps", style="bright_black")
        for step in row["steps"]:
            yield Text(f"{one_line(step['name'])}  {safe(json_text(step['result']))}")
    for error in row["errors"] or ():
        yield from _error(error, now)


def stats_table(rows: Sequence[Row], paused: Mapping[str, Any], deaths: Mapping[tuple[str, str], int]) -> Table:
    """Make the table of live jobs: a line a queue and kind, a column a state."""
    states = [state for state in STATE_STYLES if any(row["state"] == state for row in rows)]
    counts: dict[tuple[str, str], dict[str, int]] = {}
    oldest: dict[tuple[str, str], float] = {}
    for row in rows:
        place = (row["queue"], row["kind"])
        counts.setdefault(place, {})[row["state"]] = row["jobs"]
        if row["state"] == "ready" and row["oldest_seconds"] is not None:
            oldest[place] = max(oldest.get(place, 0.0), row["oldest_seconds"])
    table = _table("queue", "kind")
    for state in states:
        table.add_column(state, justify="right", no_wrap=True, style=STATE_STYLES[state])
    table.add_column("oldest ready", justify="right", no_wrap=True)
    if deaths:
        table.add_column("died in 24 h", justify="right", no_wrap=True, style="red")
    for place in sorted({*counts, *deaths}):
        queue, kind = place
        cells = [_text(f"{queue} (paused)" if queue in paused else queue), _text(kind)]
        cells += [_count(counts.get(place, {}).get(state)) for state in states]
        cells.append(Text(duration(oldest.get(place)) or "·"))
        if deaths:
            cells.append(_count(deaths.get(place)))
        table.add_row(*cells)
    return table


def schedules_table(rows: Sequence[Row]) -> Table:
    """Make the listing of schedules: a line each."""
    table = _table("schedule", "cron", "time zone", "kind", "next", "last", "fired", "missed", "by")
    for column in table.columns[6:8]:
        column.justify = "right"
    for row in rows:
        if row["paused_at"] is not None:
            comes = Text(f"paused {ago(row['paused_at'], row['asked_at'])}", style="yellow")
        elif row["problem"]:
            comes = Text("never: see below", style="bold red")
        else:
            comes = Text(ago(row["next_at"], row["asked_at"]) or "soon")
        last = f"job {row['last_job']}, {ago(row['last_at'], row['asked_at'])}" if row["last_job"] else "·"
        fields = (row["name"], row["cron"], row["time_zone"], row["kind"])
        counts = (_count(row["fired"]), _count(row["missed_slots"]))
        by = "handler" if row["declared"] else "hand"
        table.add_row(*map(_text, fields), comes, Text(last), *counts, Text(by, style="bright_black"))
    return table


def when(row: Row) -> str:
    """Say the one time that matters in a job's state."""
    now: datetime = row["asked_at"]
    if row["state"] in {"scheduled", "retrying"}:
        return ago(row["due_at"], now)
    return ago(row["finished_at"] or row["started_at"] or row["claimed_at"] or row["created_at"], now)


def about(row: Row) -> str:
    """Say what matters most about a job: its error, who cancelled it, how far it is, or its subject."""
    if row["state"] == "cancelled":
        return ": ".join(filter(None, (f"by {row['cancelled_by'] or 'somebody'}", row["cancel_reason"])))
    if row["state"] in {"dead", "retrying"} and row["error"] is not None:
        return f"{row['error_type'] or 'error'}: {row['error']}"
    if row["state"] == "running" and row["progress"] is not None:
        return json_text(row["progress"])
    return row["subject"] or ""


def state_text(state: str) -> Text:
    """Give a state in its colour."""
    return Text(one_line(state), style=STATE_STYLES.get(state, ""))


def json_text(value: Any, *, indent: bool = False) -> str:
    """Give the JSON of a value as text."""
    return write(value, option=orjson.OPT_INDENT_2 if indent else None).decode()


def _facts(row: Row, now: datetime) -> Iterable[tuple[str, str]]:
    def moment(name: str) -> str:
        return f"{clock(row[name])} ({ago(row[name], now)})" if row[name] is not None else ""

    worker = row["worker"]
    yield "queue", row["queue"]
    yield "priority", str(row["priority"]) if row["priority"] else ""
    yield "subject", row["subject"] or ""
    yield "unique key", row["unique_key"] or ""
    crashes = f", {counted(row['crashes'], 'worker')} brought down" if row["crashes"] else ""
    yield "attempt", f"{row['attempt']} of {row['max_attempts']}{crashes}"
    yield "created", moment("created_at")
    yield "due", "when what it waits for has come" if row["state"] == "waiting" else moment("due_at")
    yield "waits for", listed([f"job {job}" for job in row["waits_for"]], 5)
    yield "claimed", moment("claimed_at") if row["started_at"] is None else ""
    yield "started", moment("started_at")
    yield "finished", moment("finished_at")
    yield "took" if row["finished_at"] else "runs for", duration(row["duration"])
    yield "worker", f"{worker} ({row['worker_name'] or 'gone'})" if worker else ""
    yield "cancelled by", row["cancelled_by"] or ""
    yield "reason", row["cancel_reason"] or ""
    yield "retry of", f"job {row['retried_from']}" if row["retried_from"] else ""
    yield "retried as", listed([f"job {job}" for job in row["retries"]], 5)


def _error(error: Mapping[str, Any], now: datetime) -> Iterable[RenderableType]:
    at = error.get("at")
    head = Text.assemble(
        (f"\nattempt {error.get('attempt', '?')}", "bright_black"),
        (f", {ago(datetime.fromisoformat(at), now)}  " if at else "  ", "bright_black"),
        (one_line(str(error.get("type", "error"))), "bold red"),
        f": {safe(str(error.get('message', '')), keep=chr(10))}",
    )
    yield head
    stack = error.get("stack")
    if stack:
        yield Text(safe(str(stack), keep="\n").rstrip(), style="bright_black")


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _count(number: int | None) -> Text:
    return Text(f"{number:,}") if number else Text("·", style="bright_black")


def _text(value: str) -> Text:
    return Text(one_line(value))
