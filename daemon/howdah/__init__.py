"""Howdah: background jobs for PostgreSQL. This is what handlers modules and applications import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    from howdah.errors import DatabaseUnavailableError, HowdahError, RefusedError, UniqueKeyHeldError
    from howdah.job import Cancel, Discard, Job, Snooze
    from howdah.lifespans import lifespan
    from howdah.registry import handler
    from howdah.schedules import Schedule

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
    "Schedule",
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

# Imported when first asked for: the client brings asyncpg along and the registry pydantic, and most commands, a process
# handler's child and a test suite that only loads the plugin need neither.
_HOMES = {
    "Cancel": "job",
    "DatabaseUnavailableError": "errors",
    "Discard": "job",
    "HowdahError": "errors",
    "Job": "job",
    "RefusedError": "errors",
    "Schedule": "schedules",
    "Snooze": "job",
    "UniqueKeyHeldError": "errors",
    "handler": "registry",
    "lifespan": "lifespans",
    "on_error": "error_reporters",
}


def __getattr__(name: str) -> Any:
    """Load a name's module when the name is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module howdah has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"howdah.{_HOMES.get(name, 'client')}"), name)
    return value
