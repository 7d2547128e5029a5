"""Howdah: background jobs for PostgreSQL. This is what handlers modules and applications import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from howdah.errors import DatabaseUnavailableError, HowdahError, RefusedError, UniqueKeyHeldError
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
    from howdah.error_reporters import on_error
    from howdah.job import Cancel, Discard, Job, Snooze
    from howdah.lifespans import lifespan
    from howdah.registry import handler

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

# Where names live that are imported when first asked for; the others are the client's. The registry brings pydantic along and the
# client asyncpg, and neither most commands nor a process handler's child need both.
_HOMES = {
    "Cancel": "howdah.job",
    "Discard": "howdah.job",
    "Job": "howdah.job",
    "Snooze": "howdah.job",
    "handler": "howdah.registry",
    "lifespan": "howdah.lifespans",
    "on_error": "howdah.error_reporters",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module howdah has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "howdah.client")), name)
    return value
