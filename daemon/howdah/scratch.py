"""A place for temporary files where the root of a container is read-only."""

from __future__ import annotations

import logging
import os
import tempfile

log = logging.getLogger("howdah.scratch")

#: Memory that every container has, 64 MB as a rule.
MEMORY = "/dev/shm"  # noqa: S108


def find_scratch() -> None:
    """Let temporary files lie in memory if no folder can be written, here and in all processes that are started from here.

    Process handlers need a few bytes of it. What needs more should have a /tmp of its own.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if os.access(MEMORY, os.W_OK):
            os.environ["TMPDIR"] = MEMORY
            log.warning("no folder for temporary files can be written: they lie in memory", extra={"folder": MEMORY})
