"""A snapshot as a screen of so many columns and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from howdah.doctor.finding import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from rich.console import RenderableType

    from howdah.top.snapshot import Snapshot

STATES = ("ready", "running", "scheduled", "retrying", "waiting")
BARS = " ▁▂▃▄▅▆▇█"
#: A screen narrower than this does without the columns that say least.
WIDE = 100
#: Lines that are not rows: the head, two graphs, three tables' titles and heads, what lies between.
FIXED = 13


def frame(now: Snapshot, width: int, height: int) -> RenderableType:
    """Draw a snapshot: head, flow, queues, workers, running jobs; what has no room is said to be left out."""
    room = max(height - FIXED, 6)
    queues = sorted({row["queue"] for row in now.depth} | now.paused | {q for w in now.workers for q in w["queues"]})
    shown_queues = queues[: max(room // 3, 2)]
    shown_workers = now.workers[: max(room // 3, 2)]
    left = max(room - len(shown_queues) - len(shown_workers), 2)
    return Group(
        _head(now, width),
        _graph("enqueued", now.flow.come, width, "cyan"),
        _graph("ended", now.flow.gone, width, "green"),
        Text(),
        _queues(now, shown_queues, len(queues)),
        Text(),
        _workers(shown_workers, len(now.workers), width),
        Text(),
        _running(now, left, width),
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the newest values, the tallest as a full bar; anything above nothing shows."""
    newest = list(values)[-width:]
    most = max(newest, default=0.0)
    if most <= 0:
        return " " * len(newest)
    return "".join(BARS[0 if value <= 0 else max(1, round(value / most * 8))] for value in newest)


def plain(text: str) -> str:
    """Take out what a terminal would obey: names are other people's."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _head(now: Snapshot, width: int) -> Text:
    living = sum(not worker["dead"] for worker in now.workers)
    totals = {state: sum(row["jobs"] for row in now.depth if row["state"] == state) for state in STATES}
    says = ", ".join(f"{totals[state]:,} {state}" for state in STATES if totals[state] or state in {"ready", "running"})
    head = Text.assemble(
        ("howdah top", "bold"),
        f"  {now.at:%H:%M:%S} UTC  ",
        (f"{living} worker{'' if living == 1 else 's'}", "green" if living else "bold red"),
        f"  {says}  ",
        (plain(now.place), "dim"),
        overflow="ellipsis",
        no_wrap=True,
    )
    head.truncate(width, overflow="ellipsis")
    return head


def _graph(name: str, values: Sequence[float], width: int, style: str) -> Text:
    rate = values[-1] if values else 0.0
    label = f"{name:>8} {rate:>9,.0f}/s "
    return Text.assemble(label, (sparkline(values, max(width - len(label) - 1, 1)), style), no_wrap=True)


def _table(title: str, shown: int, total: int) -> Table:
    more = f" ({shown} of {total})" if shown < total else ""
    return Table(
        title=f"[bold]{title}[/]{more}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        expand=True,
        header_style="dim",
    )


def _queues(now: Snapshot, queues: Sequence[str], total: int) -> Table:
    table = _table("queues", len(queues), total)
    table.add_column("queue", ratio=1, no_wrap=True, overflow="ellipsis", min_width=8)
    for state in STATES:
        table.add_column(state, justify="right", no_wrap=True)
    table.add_column("oldest", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    cells = {(row["queue"], row["state"]): row for row in now.depth}
    for queue in queues:
        counts = []
        for state in STATES:
            row = cells.get((queue, state))
            counts.append("·" if row is None else f"{'' if row['exact'] else '~'}{row['jobs']:,}")
        ready = cells.get((queue, "ready"))
        oldest = span(ready["oldest"]) if ready is not None and ready["oldest"] is not None else "·"
        table.add_row(Text(plain(queue)), *counts, oldest, "[yellow]paused[/]" if queue in now.paused else "")
    return table


def _workers(workers: Sequence[asyncpg.Record], total: int, width: int) -> Table:
    table = _table("workers", len(workers), total)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("name", ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column("is", no_wrap=True)
    table.add_column("beat", justify="right", no_wrap=True)
    table.add_column("queues", ratio=2, no_wrap=True, overflow="ellipsis")
    if width >= WIDE:
        table.add_column("kinds", justify="right", no_wrap=True)
        table.add_column("since", justify="right", no_wrap=True)
        table.add_column("version", no_wrap=True)
    for worker in workers:
        row = [Text(str(worker["id"])), Text(plain(worker["name"])), _state(worker), Text(span(worker["silent"]))]
        row.append(Text(plain(", ".join(worker["queues"]))))
        if width >= WIDE:
            row += map(Text, (str(worker["kinds"]), span(worker["age"]), plain(worker["version"])))
        table.add_row(*row)
    return table


def _state(worker: asyncpg.Record) -> Text:
    if worker["dead"]:
        return Text("dead", "bold red")
    if worker["draining"]:
        return Text("draining", "yellow")
    said = "idle" if worker["sleeps"] else "busy"
    return Text(f"{said}, leads" if worker["leads"] else said)


def _running(now: Snapshot, room: int, width: int) -> Table:
    shown = now.running[:room]
    table = _table("running", len(shown), len(now.running))
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("kind", ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column("queue", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("try", justify="right", no_wrap=True)
    table.add_column("for", justify="right", no_wrap=True)
    table.add_column("worker", ratio=2, no_wrap=True, overflow="ellipsis")
    if width >= WIDE:
        table.add_column("progress", ratio=2, no_wrap=True, overflow="ellipsis")
    for job in shown:
        time = span(job["running"]) if job["running"] is not None else "in hand"
        tries = f"{job['attempt']}/{job['max_attempts']}" if job["attempt"] is not None else ""
        row = [str(job["id"]), plain(job["kind"]), plain(job["queue"]), tries, time, plain(job["worker"] or "nobody")]
        if width >= WIDE:
            row.append(plain(job["progress"] or ""))
        table.add_row(*map(Text, row))
    return table
