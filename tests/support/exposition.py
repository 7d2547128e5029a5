"""Print what a worker exports, every metric with a sample, for `promtool check metrics`."""

from __future__ import annotations

import sys

from howdah.board import BOARD
from howdah.metrics import Metrics


def full_exposition() -> str:
    metrics = Metrics(queues=["default"], kinds={"work": "default"})
    metrics.runs["default", "work", "completed"].append(0.02)
    metrics.waits["default"].append(0.001)
    metrics.fold()
    metrics.slots.labels("default").set(1)
    metrics.slots_used.labels("default").set(1)
    metrics.board.tell({name: [(tuple(labels), 1.0)] for name, (labels, _) in BOARD.items()})
    return metrics.exposition().decode()


if __name__ == "__main__":
    sys.stdout.write(full_exposition())
