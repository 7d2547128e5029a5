"""What metrics cost: `howdah bench` in pairs, with them and without, in turn.

Without means a daemon whose collectors take what they are given and do nothing with it; there is no such setting, only this script.

    .venv/bin/python benchmarks/metrics_cost.py --pairs 6 --jobs 100000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict, deque
from typing import Any

OFF = "--off"


class Silent:
    """Takes anything, does nothing."""

    def ignore(self, *_arguments: object, **_named: object) -> None:
        """Do nothing."""

    inc = dec = set = observe = begin = count = set_function = fold = ignore

    def labels(self, *_labels: object) -> Silent:
        """Give itself."""
        return self


def endless() -> deque[float]:
    """Give what keeps nothing, as fast as a list keeps."""
    return deque(maxlen=0)


def main() -> None:
    """Run the pairs, or one run of a pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument(OFF, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(off=given.off, jobs=given.jobs)
        return
    ratios: dict[str, list[float]] = {"drained_per_second": [], "worker_cpu_us_per_job": []}
    for pair in range(given.pairs):
        # Each goes first in turn: a machine that warms up or tires favours neither.
        order = (True, False) if pair % 2 else (False, True)
        figures = {off: run(off=off, jobs=given.jobs) for off in order}
        line = []
        for name, seen in ratios.items():
            seen.append(figures[False][name] / figures[True][name])
            line.append(f"{name} on {figures[False][name]:,.1f} off {figures[True][name]:,.1f} ratio {seen[-1]:.4f}")
        print(f"pair {pair + 1}: " + "; ".join(line), flush=True)
    for name, seen in ratios.items():
        print(f"{name}: on/off, median {statistics.median(seen):.4f}, from {min(seen):.4f} to {max(seen):.4f}")


def run(*, off: bool, jobs: int) -> dict[str, Any]:
    """Run one bench in a process of its own; gives its figures."""
    command = [sys.executable, __file__, "--one", "--jobs", str(jobs), *([OFF] if off else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # ourselves
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def one(*, off: bool, jobs: int) -> None:
    """Run `howdah bench` here, with silent collectors if they are to be off."""
    from howdah import metrics  # noqa: PLC0415  # only the child loads the daemon
    from howdah.bench import bench  # noqa: PLC0415

    if off:
        silence(metrics.Metrics)
    bench(["--json", "--jobs", str(jobs), "--latencies", "10"])


def silence(kind: Any) -> None:
    """Let every collector of the class ignore what it is told."""
    make = kind.__init__

    def make_silent(self: Any, **given: Any) -> None:
        make(self, **given)
        for name, value in vars(self).items():
            if hasattr(value, "collect") and name not in {"registry", "board"}:
                setattr(self, name, Silent())
        self.waits = defaultdict(endless)
        self.runs = defaultdict(endless)
        self.fold = Silent().ignore
        self.count_finished = lambda: (0, 0)

    kind.__init__ = make_silent


if __name__ == "__main__":
    main()
