"""What a worker counts, as Prometheus collectors."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from howdah.version import __version__

#: From a millisecond to an hour.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """All collectors of one worker. Labels come from the configuration and the registry, never from jobs' data."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.jobs = Gauge(
            "howdah_jobs",
            "Live jobs by queue and state, told by the leading worker alone.",
            ["queue", "state"],
            registry=registry,
        )
        self.oldest_ready = Gauge(
            "howdah_oldest_ready_seconds",
            "Age of the oldest ready job, told by the leading worker alone.",
            ["queue"],
            registry=registry,
        )
        self.claimed = Counter("howdah_jobs_claimed", "Jobs claimed.", ["queue"], registry=registry)
        self.finished = Counter(
            "howdah_jobs_finished", "Attempts that ended, by outcome.", ["queue", "kind", "outcome"], registry=registry
        )
        self.wait = Histogram(
            "howdah_job_wait_seconds", "From ready to started.", ["queue"], buckets=SECONDS, registry=registry
        )
        self.run = Histogram(
            "howdah_job_run_seconds", "From started to ended.", ["kind"], buckets=SECONDS, registry=registry
        )
        self.slots = Gauge("howdah_slots", "Handlers that may run at once.", ["queue"], registry=registry)
        self.slots_used = Gauge("howdah_slots_used", "Handlers that run now.", ["queue"], registry=registry)
        self.in_hand = Gauge("howdah_jobs_in_hand", "Jobs claimed and not started yet.", registry=registry)
        self.rescued = Counter("howdah_rescued", "Jobs taken back from dead workers.", registry=registry)
        self.lost_leases = Counter(
            "howdah_lost_leases", "Acks refused because the job was not this worker's any more.", registry=registry
        )
        self.claim_seconds = Histogram(
            "howdah_claim_seconds", "Time of a claim statement.", buckets=SECONDS, registry=registry
        )
        self.ack_seconds = Histogram(
            "howdah_ack_seconds", "Time of an ack statement.", buckets=SECONDS, registry=registry
        )
        self.ack_batch = Histogram(
            "howdah_ack_batch_size",
            "Attempts in one ack.",
            buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000),
            registry=registry,
        )
        self.heartbeat_age = Gauge(
            "howdah_heartbeat_age_seconds", "Since the last beat that the database took.", registry=registry
        )
        self.listener_up = Gauge(
            "howdah_listener_up", "1 while LISTEN works; 0: jobs are found by polling only.", registry=registry
        )
        self.wakes = Counter("howdah_wakes", "Wakes received.", registry=registry)
        self.polls = Counter("howdah_polls", "Claims made because time had passed, without a wake.", registry=registry)
        self.reconnects = Counter("howdah_reconnects", "Connections made anew.", ["connection"], registry=registry)
        self.loop_lag = Gauge("howdah_loop_lag_seconds", "How late the main loop's pulse came last.", registry=registry)
        self.draining = Gauge("howdah_draining", "1 while the worker claims no more.", registry=registry)
        self.partitions_ahead = Gauge(
            "howdah_history_partitions_ahead", "Days of history, from today, that are ready.", registry=registry
        )
        Gauge("howdah_worker_info", "1, with the worker's version.", ["version"], registry=registry).labels(
            __version__
        ).set(1)

    def count_finished(self) -> tuple[int, int]:
        """Give the attempts that ended, released ones left out, and how many of them ended their job as dead."""
        processed = dead = 0
        for family in self.finished.collect():
            for sample in family.samples:
                if sample.name.endswith("_total") and sample.labels["outcome"] != "released":
                    processed += int(sample.value)
                    dead += int(sample.value) if sample.labels["outcome"] == "dead" else 0
        return processed, dead

    def exposition(self) -> bytes:
        """Give the text that Prometheus scrapes."""
        return generate_latest(self.registry)
