"""Howdah: background jobs for PostgreSQL. This is what handlers modules and applications import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from howdah.error_reporters import on_error
from howdah.errors import DatabaseUnavailableError, HowdahError, RefusedError, UniqueKeyHeldError
from howdah.job import Cancel, Discard, Job, Snooze
from howdah.lifespans import lifespan
from howdah.registry import handler
from howdah.version import __version__

if TYPE_CHECKING:
    from howdah.client import (
        Client,
        Enqueued,
        JobStatus,
        NewJob,
        Tally,
        create_batch,
        enqueue,
        enqueue_many,
        enqueue_payloads,
    )

__all__ = [
    "Cancel",
    "Client",
    "DatabaseUnavailableError",
    "Discard",
    "Enqueued",
    "HowdahError",
    "Job",
    "JobStatus",
    "NewJob",
    "RefusedError",
    "Snooze",
    "Tally",
    "UniqueKeyHeldError",
    "__version__",
    "create_batch",
    "enqueue",
    "enqueue_many",
    "enqueue_payloads",
    "handler",
    "lifespan",
    "on_error",
]


def __getattr__(name: str) -> Any:
    """Load the client when it is first asked for: it needs asyncpg, and a process handler's child does not."""
    if name not in __all__:
        raise AttributeError(f"module howdah has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("howdah.client"), name)
    return value
