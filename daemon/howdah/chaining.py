"""Jobs that a handler asks for: checked where it asks, and enqueued in the same commit as the ack of its own job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howdah.errors import RefusedError, UniqueKeyHeldError
from howdah.newjob import arguments_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg


#: Of all jobs that come with one outcome. An array that jsonb takes ends at 256 MiB; on a gigabyte the server hangs up, and the ack would
#: be repeated for ever.
CHAIN_BYTES = 64 << 20


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
    """Give jobs as one JSON array. Raises RefusedError for more than the database takes at once."""
    size = sum(map(len, links))
    if size > CHAIN_BYTES:
        raise RefusedError(
            "JB002",
            f"{len(links)} jobs to be enqueued with the outcome have {size} bytes of JSON, more than {CHAIN_BYTES}",
            "store the data elsewhere and pass its key, or let one of them enqueue the others",
        )
    return b"[" + b",".join(links) + b"]"


def refusal(error: asyncpg.PostgresError) -> RefusedError:
    """Give the error of a handler whose jobs the database refused. Without its detail, which may show a row."""
    refused = UniqueKeyHeldError if error.sqlstate == "JB005" else RefusedError
    return refused(str(error.sqlstate), str(error.args[0]), getattr(error, "hint", None) or "")
