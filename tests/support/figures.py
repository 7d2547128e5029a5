"""What a test of a fault has counted: one line of the table in docs/reliability.md.

A test that carries `@pytest.mark.fault(part, fault, promise)` may fill in the fixture `figures`. Where HOWDAH_FIGURES names a
folder, the figures of a test that passed are written there, and `python -m support.reliability` makes the table of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: The folder for the figures of a run.
FOLDER = "HOWDAH_FIGURES"


@dataclass(slots=True)
class Figures:
    """Jobs that were enqueued and committed, faults that were injected, and what came of both."""

    jobs: int = 0
    faults: int = 0
    #: Jobs that were committed and have no end, or more than one.
    lost: int = 0
    #: Effects of `transaction=True` handlers, and acks of leases that were not current, that are there more often than once.
    doubled: int = 0
    #: Seconds from the end of the fault until work went on as promised; the longest of the test.
    recovery: float | None = None

    def recovered(self, seconds: float) -> None:
        """Note one recovery; the longest stands."""
        self.recovery = max(seconds, self.recovery or 0.0)


def write(item: pytest.Item, figures: Figures) -> None:
    """Keep the figures of a test that passed, if a folder was named for them."""
    folder, mark = os.environ.get(FOLDER), item.get_closest_marker("fault")
    if not folder or mark is None:
        return
    part, fault, promise = mark.args
    line = {"test": item.nodeid, "part": part, "fault": fault, "promise": promise, **asdict(figures)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    Path(folder, f"{name}.json").write_text(json.dumps(line), encoding="utf-8")
