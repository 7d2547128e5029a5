"""Howdah: background jobs for PostgreSQL. This is what a handlers module imports."""

from howdah.error_reporters import on_error
from howdah.job import Cancel, Discard, Job, Snooze
from howdah.lifespans import lifespan
from howdah.registry import handler
from howdah.version import __version__

__all__ = ["Cancel", "Discard", "Job", "Snooze", "__version__", "handler", "lifespan", "on_error"]
