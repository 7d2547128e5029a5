"""What a worker counts, as Prometheus collectors."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from howdah.board import Board
from howdah.tally import TallyCounter, TallyHistogram
from howdah.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: From a millisecond to an hour.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
#: A statement of the engine takes less.
QUICK_SECONDS = SECONDS[:13]
BATCHES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

#: The outcomes that stand in `howdah_jobs_finished_total` from the start.
COMMON_OUTCOMES = ("completed", "retried", "dead")
#: The engine's connections.
CONNECTIONS = ("claim", "ack", "chain", "spare", "step", "count", "beat", "ask", "listen")


class Metrics:
    """All collectors of one worker. Labels come from the configuration and the registry, never from jobs' data."""

    def __init__(self, *, queues: Iterable[str] = (), kinds: Mapping[str, str] | None = None) -> None:
        """Make the collectors of a worker of these queues, and of these kinds with the queues that they go to."""
        queues = list(queues)
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        #: What the leading worker knows of the whole database.
        self.board = Board(registry)
        # -- jobs
        #: Noted by the executor for every job and counted by `fold`: the waits by queue, the runs by queue, kind and outcome, in seconds;
        #: and the attempts that ended without having started. Two appends to lists are all that a job pays.
        self.waits: defaultdict[str, list[float]] = defaultdict(list)
        self.runs: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.unstarted: list[tuple[str, str, str]] = []
        self.claimed = Counter("howdah_jobs_claimed", "Jobs claimed.", ["queue"], registry=registry)
        self.finished = TallyCounter(
            "howdah_jobs_finished",
            "Attempts that ended, by outcome: completed, snoozed, retried, dead, cancelled or released.",
            ("queue", "kind", "outcome"),
            registry,
        )
        self.wait = TallyHistogram(
            "howdah_job_wait_seconds",
            "From the moment a job was ready until its handler started.",
            "queue",
            SECONDS,
            registry,
        )
        self.run = TallyHistogram(
            "howdah_job_run_seconds", "From a handler's start to its end.", "kind", SECONDS, registry
        )
        self.rescued = Counter(
            "howdah_rescued", "Jobs that this worker took back from dead workers.", registry=registry
        )
        self.buried = Counter(
            "howdah_buried",
            "Jobs that this worker ended as dead because the workers that ran them died.",
            registry=registry,
        )
        self.lost_leases = Counter(
            "howdah_lost_leases", "Acks refused because the job was not this worker's any more.", registry=registry
        )
        self.schedule_slots = Counter(
            "howdah_schedule_slots",
            "Slots of schedules that this worker dealt with: fired, missed (and given up), or overlapped (its last job lived).",
            ["outcome"],
            registry=registry,
        )
        # -- slots
        self.slots = Gauge("howdah_slots", "Handlers that may run at once.", ["queue"], registry=registry)
        self.slots_used = Gauge("howdah_slots_used", "Handlers that run now.", ["queue"], registry=registry)
        self.in_hand = Gauge("howdah_jobs_in_hand", "Jobs claimed and not started yet.", registry=registry)
        # -- claims and acks
        self.claim_seconds = Histogram(
            "howdah_claim_seconds", "Time of a claim statement.", buckets=QUICK_SECONDS, registry=registry
        )
        self.claim_batch = Histogram(
            "howdah_claim_batch_size", "Jobs that one claim brought.", buckets=(0, *BATCHES), registry=registry
        )
        self.claims_empty = Counter("howdah_claims_empty", "Claims that brought nothing.", registry=registry)
        self.ack_seconds = Histogram(
            "howdah_ack_seconds", "Time of an ack statement.", buckets=QUICK_SECONDS, registry=registry
        )
        self.ack_batch = Histogram("howdah_ack_batch_size", "Attempts in one ack.", buckets=BATCHES, registry=registry)
        self.acks_waiting = Gauge("howdah_acks_waiting", "Outcomes that are not written yet.", registry=registry)
        # -- the lifeline
        self.heartbeat_age = Gauge(
            "howdah_heartbeat_age_seconds", "Since the last beat that the database took.", registry=registry
        )
        self.listener_up = Gauge(
            "howdah_listener_up", "1 while LISTEN works; 0: jobs are found by polling only.", registry=registry
        )
        self.wakes = Counter("howdah_wakes", "Wakes received.", registry=registry)
        self.polls = Counter("howdah_polls", "Claims made because time had passed, without a wake.", registry=registry)
        self.reconnects = Counter("howdah_reconnects", "Connections made anew.", ["connection"], registry=registry)
        self.loop_lag = Gauge(
            "howdah_loop_lag_seconds",
            "How late the main loop's pulse came, the worst of the last 15 s.",
            registry=registry,
        )
        self.loop_blocked = Counter(
            "howdah_loop_blocked_seconds",
            "Time for which handlers held up the main loop, in pieces of 0.1 s or more.",
            ["kind"],
            registry=registry,
        )
        self.draining = Gauge("howdah_draining", "1 while the worker claims no more.", registry=registry)
        self.leading = Gauge("howdah_leading", "1 in the worker that counts for all.", registry=registry)
        self.info = Gauge("howdah_worker_info", "1, with the worker's version.", ["version"], registry=registry)
        self.info.labels(__version__).set(1)
        self._begin(queues, kinds or {})

    def fold(self) -> None:
        """Count what was noted of jobs since the last time: on the main loop, with every pulse."""
        for queue, waits in self.waits.items():
            self.wait.observe(queue, waits)
            waits.clear()
        for labels, runs in self.runs.items():
            self.finished.count(labels, len(runs))
            self.run.observe(labels[1], runs)
            runs.clear()
        for labels in self.unstarted:
            self.finished.count(labels)
        self.unstarted.clear()

    def count_finished(self) -> tuple[int, int]:
        """Give the attempts that ended, released ones left out, and how many of them ended their job as dead. On the main loop."""
        self.fold()
        processed = dead = 0
        for (*_, outcome), count in self.finished.items():
            processed += count if outcome != "released" else 0
            dead += count if outcome == "dead" else 0
        return processed, dead

    def exposition(self) -> bytes:
        """Give the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _begin(self, queues: list[str], kinds: Mapping[str, str]) -> None:
        """Show what can be counted before it is: an alert must see the first failure grow from 0."""
        for queue in queues:
            self.claimed.labels(queue)
            self.wait.begin(queue)
        for kind, home in kinds.items():
            self.run.begin(kind)
            self.loop_blocked.labels(kind)
            for outcome in COMMON_OUTCOMES if home in queues else ():
                self.finished.begin(home, kind, outcome)
        for outcome in ("fired", "missed", "overlapped"):
            self.schedule_slots.labels(outcome)
        for connection in CONNECTIONS:
            self.reconnects.labels(connection)
