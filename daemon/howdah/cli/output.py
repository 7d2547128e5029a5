"""What programs read: JSON, one object a line; and what people see while they wait."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from howdah.anyjson import write_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# DEL and C1 pass through JSON as they are, and some terminals obey them. They stand in strings only.
_HOSTILE = re.compile("[\x7f-\x9f]")
#: For so long nobody wonders what goes on, in seconds.
PATIENCE = 1.0


def emit(value: Any) -> None:
    """Print one JSON object on a line of its own; durations are seconds."""
    text = write_fields(value, default=_plain).decode()
    click.echo(_HOSTILE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a long work is; gives a function that hears how much more is done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # Only a terminal needs it.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
