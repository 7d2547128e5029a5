"""Jobs that a handler asks for: checked where it asks, and enqueued in the same commit as the ack of its own job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howdah.errors import RefusedError, UniqueKeyHeldError
from howdah.newjob import arguments_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg


@dataclass(frozen=True, slots=True)
class Chain:
    """What goes with an ack: the jobs, as JSON for howdah.enqueue_many, and who is told how it went."""

    jobs: bytes
    written: Callable[[], None]
    #: The database refused the jobs, and with them the ack: nothing is written yet.
    refused: Callable[[asyncpg.PostgresError], None]


def link(kind: str, payload: Any, options: Mapping[str, Any]) -> bytes:
    """Give one job as JSON. Raises RefusedError, which names what is wrong."""
    return arguments_json({"kind": kind, "payload": {} if payload is None else payload, **options}).encode()


def chain(links: Sequence[bytes]) -> bytes:
    """Give jobs as one JSON array."""
    return b"[" + b",".join(links) + b"]"


def refusal(error: asyncpg.PostgresError) -> RefusedError:
    """Give the error of a handler whose jobs the database refused. Without its detail, which may show a row."""
    refused = UniqueKeyHeldError if error.sqlstate == "JB005" else RefusedError
    return refused(str(error.sqlstate), str(error.args[0]), getattr(error, "hint", None) or "")
