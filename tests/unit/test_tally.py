"""Cheap counts that are scraped as any other metric."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from support.daemon import parse_metrics

from howdah.metrics import Metrics
from howdah.tally import TallyCounter, TallyHistogram

BOUNDS = (0.001, 0.5, 1, 30)
VALUES = (0.0, 0.001, 0.0011, 0.5, 0.7, 1, 1.0001, 30, 31, 4000)


def test_a_histogram_says_what_the_librarys_own_would_say() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyHistogram("seconds", "Seconds.", "kind", BOUNDS, ours)
    library = Histogram("seconds", "Seconds.", ["kind"], buckets=BOUNDS, registry=theirs)
    for kind in ("a", "b"):
        for values in (VALUES, [], [0.25]):
            tally.observe(kind, values)
            for value in values:
                library.labels(kind).observe(value)
    library.labels("c")
    tally.begin("c")
    said = parse_metrics(generate_latest(theirs).decode())
    expected = {name: value for name, value in said.items() if not name.startswith("seconds_created")}
    assert parse_metrics(generate_latest(ours).decode()) == pytest.approx(expected)


def test_a_counter_counts_by_labels_and_shows_what_has_begun() -> None:
    registry = CollectorRegistry()
    counter = TallyCounter("ends", "Ends.", ("queue", "outcome"), registry)
    counter.begin("default", "dead")
    counter.begin("default", "done")
    counter.count(("default", "done"), 2)
    counter.begin("default", "done")
    counter.count(("default", "done"))
    assert parse_metrics(generate_latest(registry).decode()) == {
        'ends_total{outcome="dead",queue="default"}': 0,
        'ends_total{outcome="done",queue="default"}': 3,
    }


def test_no_two_collectors_share_a_name() -> None:
    registry = CollectorRegistry()
    TallyCounter("ends", "Ends.", ("queue",), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        TallyHistogram("ends", "Ends.", "queue", BOUNDS, registry)


def test_what_is_noted_of_jobs_is_counted_once() -> None:
    metrics = Metrics(queues=["default"], kinds={"work": "default"})
    metrics.waits["default"] += [0.5, 0.25]
    metrics.runs["default", "work", "completed"].append(0.5)
    metrics.unstarted.append(("default", "work", "released"))
    assert metrics.count_finished() == (1, 0)
    metrics.runs["default", "work", "dead"].append(2.0)
    assert metrics.count_finished() == (2, 1)
    metrics.fold()
    found = parse_metrics(metrics.exposition().decode())
    assert found['howdah_job_wait_seconds_count{queue="default"}'] == 2
    assert (found['howdah_job_run_seconds_count{kind="work"}'], found['howdah_job_run_seconds_sum{kind="work"}']) == (
        2,
        2.5,
    )
    assert found['howdah_jobs_finished_total{kind="work",outcome="released",queue="default"}'] == 1
