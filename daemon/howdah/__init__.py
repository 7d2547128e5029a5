"""Howdah: background jobs for PostgreSQL. This is what a handlers module imports."""

from howdah.job import Cancel, Discard, Job, Snooze
from howdah.registry import handler
from howdah.version import __version__

__all__ = ["Cancel", "Discard", "Job", "Snooze", "__version__", "handler"]
