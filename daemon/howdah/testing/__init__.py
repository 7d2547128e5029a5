"""The test kit for those who enqueue jobs and write handlers: run them, look at what is enqueued, on a database a test.

`await` these in async tests; `howdah.testing.sync` has the same names for plain ones. The fixture `howdah_database` comes with
the plugin that pytest finds by itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from howdah.testing.attempt import JobOutcome, run_job
    from howdah.testing.databases import Database
    from howdah.testing.enqueued import EnqueuedJob, assert_enqueued, assert_not_enqueued
    from howdah.testing.running import EndedJob, Run, run_until_empty

__all__ = [
    "Database",
    "EndedJob",
    "EnqueuedJob",
    "JobOutcome",
    "Run",
    "assert_enqueued",
    "assert_not_enqueued",
    "run_job",
    "run_until_empty",
]

# Imported when first asked for: pytest loads the plugin beside this in every suite, also in those that never use it.
_HOMES = {
    "Database": "databases",
    "EndedJob": "running",
    "EnqueuedJob": "enqueued",
    "JobOutcome": "attempt",
    "Run": "running",
    "assert_enqueued": "enqueued",
    "assert_not_enqueued": "enqueued",
    "run_job": "attempt",
    "run_until_empty": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'howdah.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"howdah.testing.{_HOMES[name]}"), name)
    return value
