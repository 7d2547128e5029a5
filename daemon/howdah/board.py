"""Figures of the whole database, told by the leading worker alone and replaced all at once.

A scrape comes on another thread: it sees one count or the next, never half of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import CollectorRegistry

#: A sample's labels in their order, and its value.
Samples = list[tuple[tuple[str, ...], float]]

#: name → labels, and what it tells.
BOARD: dict[str, tuple[tuple[str, ...], str]] = {
    "howdah_jobs": (
        ("queue", "state"),
        "Live jobs. Exact to 5,000 ready and running ones and 5,000 that are not due; beyond that estimated from a sample.",
    ),
    "howdah_oldest_ready_seconds": (
        ("queue",),
        "Age of the oldest ready job, 0 when there is none; of very many, the oldest among those that are next.",
    ),
    "howdah_stuck_jobs": (
        (),
        "Running jobs of workers that are dead beyond rescue's time, or past their timeout by more than 30 s.",
    ),
    "howdah_orphan_jobs": (
        ("queue",),
        "Ready jobs that no living worker of their queue has a handler for, among the first 5,000.",
    ),
    "howdah_queue_paused_seconds": (("queue",), "Since a queue was paused; nothing for queues that are not."),
    "howdah_limit_oldest_seconds": (
        ("limit",),
        "For how long the oldest of the jobs that a limit holds back has waited; 0: none waits.",
    ),
    "howdah_schedule_overdue_seconds": (
        (),
        "For how long the schedule that has waited longest ought to have fired and has not; 0: none.",
    ),
    "howdah_schedules": (("state",), "Schedules: active, paused, or failing (why, says howdah doctor)."),
    "howdah_workers": (("state",), "Workers that are living, draining, or dead and not cleared away yet."),
    "howdah_table_bytes": (("table",), "Size of a table with its indexes; history is all of its partitions."),
    "howdah_table_live_rows": (("table",), "Rows of a table, as the server's statistics estimate them."),
    "howdah_table_dead_rows": (
        ("table",),
        "Row versions that wait for vacuum, as the server's statistics estimate them.",
    ),
    "howdah_xmin_age_transactions": (
        ("holder",),
        "How many transactions ago the oldest snapshot was taken that keeps vacuum from its work, by the sort of its holder.",
    ),
    "howdah_xmin_held_seconds": (
        ("holder",),
        "For how long that holder has held it, as far as this worker can see, else since it saw it first.",
    ),
    "howdah_notify_queue_usage_ratio": (
        (),
        "How full the server's queue of notifications is, 0 to 1; full, commits that notify fail.",
    ),
    "howdah_history_partitions_ahead": ((), "Days of history, from today, that have their partition."),
    "howdah_history_oldest_seconds": ((), "Since the beginning of the oldest day of history."),
    "howdah_census_seconds": ((), "How long the statements of the last count took."),
}


class Board(Collector):
    """Shows what it was last told. Written by the main loop, read by whoever scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: Mapping[str, Samples] = {}
        registry.register(self)

    def tell(self, figures: Mapping[str, Samples]) -> None:
        """Show these figures from now on, and no others; none at all when another worker leads."""
        self._figures = figures

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Tell the names; the registry refuses second ones of them."""
        return self._families({})

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give what is scraped."""
        return self._families(self._figures)

    def _families(self, figures: Mapping[str, Samples]) -> Iterator[GaugeMetricFamily]:
        for name, (labels, text) in BOARD.items():
            family = GaugeMetricFamily(name, f"{text} Told by the leading worker alone.", labels=labels)
            for values, value in figures.get(name, ()):
                family.add_metric(values, value)
            yield family
