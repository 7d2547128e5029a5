"""Jobs that a handler asks for: checked where it asks, and enqueued in the same commit as the ack of its own job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from howdah.errors import EnqueueError
from howdah.jsontext import encode_strictly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg

#: The names of howdah.enqueue's arguments, beside the kind and the payload.
OPTIONS = frozenset({
    "queue", "priority", "run_at", "delay", "max_attempts", "timeout", "unique_key", "on_conflict", "subject", "depends_on", "batch",
    "limits", "fifo_key", "expires_at", "headers", "on_failed_dependency",
})  # fmt: skip
#: Lengths of time: a number means seconds.
_INTERVALS = frozenset({"delay", "timeout"})


@dataclass(frozen=True, slots=True)
class Chain:
    """What goes with an ack: the jobs, as JSON for howdah.enqueue_many, and who is told how it went."""

    jobs: bytes
    written: Callable[[], None]
    #: The database refused the jobs, and with them the ack: nothing is written yet.
    refused: Callable[[asyncpg.PostgresError], None]


def link(kind: str, payload: Any, options: Mapping[str, Any]) -> bytes:
    """Give one job as JSON. Raises TypeError or ValueError, which name what is wrong."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"enqueue has no option {name!r}; there are {', '.join(sorted(OPTIONS))}")
    job = {"kind": kind, "payload": {} if payload is None else payload}
    for name, value in options.items():
        if value is not None:
            job[name] = _plain(name, value)
    try:
        return encode_strictly(job)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"enqueue of {kind}: it is not JSON: {error}") from None


def chain(links: Sequence[bytes]) -> bytes:
    """Give jobs as one JSON array."""
    return b"[" + b",".join(links) + b"]"


def refusal(error: asyncpg.PostgresError) -> EnqueueError:
    """Give the error of a handler whose jobs the database refused. Without its detail, which may show a row."""
    return EnqueueError(str(error.sqlstate), str(error.args[0]), getattr(error, "hint", None))


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{name} has no time zone; say datetime.now(UTC)")
    if isinstance(value, timedelta):
        return f"{value / timedelta(microseconds=1):.0f} microseconds"
    if name in _INTERVALS and isinstance(value, int | float):
        return f"{value} seconds"
    return value
