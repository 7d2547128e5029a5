"""Makes howdah.json, the dashboard: `python deploy/grafana/build.py`. A test holds the two together.

The first screen answers, from left to right and from top to bottom, what somebody asks who was woken: is it working, is it
keeping up, what fails, and why. The rows below it, closed, are for the day.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Panel = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${source}"}
#: Grafana picks it so that a rate always spans four scrapes.
RATE = "$__rate_interval"
WIDTH = 24

GREEN, YELLOW, RED = "green", "orange", "red"


def main() -> None:
    """Write the dashboard beside this file."""
    Path(__file__).with_name("howdah.json").write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")


def dashboard() -> dict[str, Any]:
    """Give the dashboard as Grafana imports it."""
    return {
        "uid": "howdah",
        "title": "Howdah",
        "description": "Background jobs of PostgreSQL: is it working, is it keeping up, what fails, and why.",
        "tags": ["howdah", "postgresql", "jobs"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [_source(), _variable("queue", "howdah_slots"), _variable("kind", "howdah_job_run_seconds_count")]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": _laid_out(
            [
                ("Is it working?", False, WORKING),
                ("Is it keeping up?", False, KEEPING_UP),
                ("What fails?", False, FAILING),
                ("Why?", False, WHY),
                ("Schedules", True, SCHEDULES),
                ("Claims and acks", True, CLAIMS),
                ("The database", True, DATABASE),
                ("Workers", True, WORKERS),
            ]
        ),
    }


# -- the pieces -------------------------------------------------------------------------------------------------------


def stat(
    title: str, expr: str, width: int, *, about: str, unit: str = "short", steps: list[tuple[float | None, str]]
) -> Panel:
    """One number that is green, or not."""
    return {
        "type": "stat",
        "title": title,
        "description": about,
        "size": (width, 3),
        "targets": [_target(expr, "", instant=True)],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "noValue": "none",
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"value": value, "color": color} for value, color in steps],
                },
                "color": {"mode": "thresholds"},
            },
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "textMode": "auto",
            "orientation": "auto",
        },
    }


def graph(
    title: str, width: int, *queries: tuple[str, str], about: str, unit: str = "short", stacked: bool = False
) -> Panel:
    """Lines over time."""
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "size": (width, 7),
        "targets": [_target(expr, legend) for expr, legend in queries],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 30 if stacked else 8,
                    "showPoints": "never",
                    "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
                },
                "color": {"mode": "palette-classic"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def bad(limit: float) -> list[tuple[float | None, str]]:
    """Green below the limit, red from it on."""
    return [(None, GREEN), (limit, RED)]


def _target(expr: str, legend: str, *, instant: bool = False) -> dict[str, Any]:
    found = {"datasource": SOURCE, "expr": expr, "legendFormat": legend, "editorMode": "code"}
    return found | ({"instant": True, "range": False} if instant else {"instant": False, "range": True})


def _source() -> dict[str, Any]:
    return {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }


def _variable(label: str, metric: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": "variable"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "hide": 0,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _laid_out(rows: list[tuple[str, bool, list[Panel]]]) -> list[Panel]:
    """Place the panels from left to right, row under row; a closed row carries its own."""
    placed: list[Panel] = []
    y, number = 0, 1
    for title, closed, panels in rows:
        row: Panel = {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": closed,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }
        placed.append(row)
        number, y, x, tallest = number + 1, y + 1, 0, 0
        for panel in panels:
            width, height = panel["size"]
            if x + width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            body = {name: value for name, value in panel.items() if name != "size"}
            targets = [target | {"refId": chr(ord("A") + place)} for place, target in enumerate(panel["targets"])]
            full = body | {
                "id": number,
                "datasource": SOURCE,
                "targets": targets,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
            }
            (row["panels"] if closed else placed).append(full)
            number, x, tallest = number + 1, x + width, max(tallest, height)
        # A closed row takes one line, whatever is in it.
        y = row["gridPos"]["y"] + 1 if closed else y + tallest
    return placed


# -- what is shown ----------------------------------------------------------------------------------------------------

WORKING = [
    stat("Workers alive", 'max(howdah_workers{state="living"}) or vector(0)', 4, about="Workers that have beaten within their ttl.", steps=[(None, RED), (1, GREEN)]),
    stat("Silence", "max(howdah_heartbeat_age_seconds)", 4, unit="s", about="Since the last heartbeat that the database took, of the worker that is worst off.", steps=[(None, GREEN), (15, YELLOW), (30, RED)]),
    stat("Jobs done per minute", f'60 * sum(rate(howdah_jobs_finished_total{{outcome="completed"}}[{RATE}]))', 4, about="Completed, over all workers.", steps=[(None, GREEN)]),
    stat("Alerts", 'count(ALERTS{alertname=~"Howdah.+", alertstate="firing"}) or vector(0)', 4, about="Alerts of deploy/prometheus that fire now; each has its page in docs/operating.md.", steps=bad(1)),
    stat("Stuck jobs", "max(howdah_stuck_jobs)", 4, about="Held by dead workers beyond rescue's time, or running past their timeout.", steps=bad(1)),
    stat("Draining", "sum(howdah_draining)", 4, about="Workers that claim no more: normal during a deploy.", steps=[(None, GREEN), (1, YELLOW)]),
]  # fmt: skip

KEEPING_UP = [
    graph("Oldest ready job", 6, ('max by (queue) (howdah_oldest_ready_seconds{queue=~"$queue"})', "{{queue}}"), unit="s", about="Grows while a queue falls behind; flat and low is well."),
    graph("Jobs by state", 6, ("sum by (state) (max by (queue, state) (howdah_jobs))", "{{state}}"), stacked=True, about="Live jobs of all queues, told by the leading worker."),
    graph("Wait until the start", 6,
          (f'histogram_quantile(0.5, sum by (le) (rate(howdah_job_wait_seconds_bucket{{queue=~"$queue"}}[{RATE}])))', "p50"),
          (f'histogram_quantile(0.95, sum by (le) (rate(howdah_job_wait_seconds_bucket{{queue=~"$queue"}}[{RATE}])))', "p95"),
          (f'histogram_quantile(0.99, sum by (le) (rate(howdah_job_wait_seconds_bucket{{queue=~"$queue"}}[{RATE}])))', "p99"),
          unit="s", about="From the moment a job was ready until its handler started."),
    graph("Held back on purpose", 6,
          ("max by (queue) (howdah_queue_paused_seconds)", "{{queue}} paused"),
          ("max by (limit) (howdah_limit_oldest_seconds)", "waits at limit {{limit}}"),
          unit="s", about="Queues that somebody paused, and since when; how long the oldest job has waited at a limit. Nothing here is mended by more workers."),
]  # fmt: skip

FAILING = [
    graph("Attempts by outcome", 8, (f'sum by (outcome) (rate(howdah_jobs_finished_total{{kind=~"$kind"}}[{RATE}]))', "{{outcome}}"), unit="ops", stacked=True, about="Per second. What is not completed is worth a look: retried, dead, released."),
    graph("Share that fails, by kind", 8,
          (f'sum by (kind) (rate(howdah_jobs_finished_total{{kind=~"$kind", outcome=~"retried|dead"}}[{RATE}])) / sum by (kind) (rate(howdah_jobs_finished_total{{kind=~"$kind"}}[{RATE}])) > 0', "{{kind}}"),
          unit="percentunit", about="Retried and dead attempts among all of a kind; kinds that do not fail are not shown."),
    graph("Dead jobs in an hour, by kind", 8, ('sum by (kind) (increase(howdah_jobs_finished_total{kind=~"$kind", outcome="dead"}[1h])) > 0', "{{kind}}"), about="`howdah jobs --state dead --kind …` lists them, `howdah show` says why."),
]  # fmt: skip

WHY = [
    graph("Slots in use", 6, ('sum by (queue) (howdah_slots_used{queue=~"$queue"}) / sum by (queue) (howdah_slots{queue=~"$queue"})', "{{queue}}"), unit="percentunit", about="At 100 %, and jobs waiting: more slots, more workers, or slower handlers than before."),
    graph("How long handlers run, p95", 6, (f'histogram_quantile(0.95, sum by (kind, le) (rate(howdah_job_run_seconds_bucket{{kind=~"$kind"}}[{RATE}])))', "{{kind}}"), unit="s", about="A kind that has become slow holds up its whole queue."),
    graph("What should not happen", 6,
          ("sum(increase(howdah_rescued_total[5m]))", "rescued"),
          ("sum(increase(howdah_buried_total[5m]))", "buried"),
          ("sum(increase(howdah_lost_leases_total[5m]))", "lost leases"),
          ("sum(howdah_listener_up == bool 0)", "deaf workers"),
          ("sum(max by (queue) (howdah_orphan_jobs)) or vector(0)", "orphans"),
          about="In five minutes. Rescues: a worker died. Buried: a job that kills workers. Lost leases: acks that came too late. Deaf: LISTEN does not work. Orphans: jobs that no living worker takes."),
    graph("Loop lag and oldest snapshot", 6,
          ("max(howdah_loop_lag_seconds)", "loop lag"),
          ("max(howdah_xmin_held_seconds) or vector(0)", "oldest snapshot"),
          unit="s", about="A handler that blocks the loop; a transaction that keeps vacuum from its work."),
]  # fmt: skip

SCHEDULES = [
    graph("Schedules by state", 8, ("max by (state) (howdah_schedules)", "{{state}}"), stacked=True, about="Failing: `howdah doctor` says why. Paused ones fire nothing until somebody resumes them."),
    graph("Slots", 8, (f"sum by (outcome) (rate(howdah_schedule_slots_total[{RATE}]))", "{{outcome}}"), unit="ops", about="Fired; missed: they came while nobody looked, and the policy gives them up; overlapped: the job before lived."),
    graph("Overdue", 8, ("max(howdah_schedule_overdue_seconds)", "overdue"), unit="s", about="For how long the schedule that has waited longest ought to have fired; a second or two is normal."),
]  # fmt: skip

CLAIMS = [
    graph("Claimed per second", 8, (f'sum by (queue) (rate(howdah_jobs_claimed_total{{queue=~"$queue"}}[{RATE}]))', "{{queue}}"), unit="ops", about="Jobs taken by all workers."),
    graph("Time of a claim", 8,
          (f"histogram_quantile(0.5, sum by (le) (rate(howdah_claim_seconds_bucket[{RATE}])))", "p50"),
          (f"histogram_quantile(0.99, sum by (le) (rate(howdah_claim_seconds_bucket[{RATE}])))", "p99"), unit="s", about="Grows with dead rows that cannot be vacuumed."),
    graph("Time of an ack", 8,
          (f"histogram_quantile(0.5, sum by (le) (rate(howdah_ack_seconds_bucket[{RATE}])))", "p50"),
          (f"histogram_quantile(0.99, sum by (le) (rate(howdah_ack_seconds_bucket[{RATE}])))", "p99"), unit="s", about="Mostly the time of a commit."),
    graph("Jobs in one claim and one ack", 8,
          (f"sum(rate(howdah_claim_batch_size_sum[{RATE}])) / sum(rate(howdah_claim_batch_size_count[{RATE}]))", "claim"),
          (f"sum(rate(howdah_ack_batch_size_sum[{RATE}])) / sum(rate(howdah_ack_batch_size_count[{RATE}]))", "ack"), about="Mean. Large under load, one when there is little to do."),
    graph("Wakes, polls, empty claims", 8,
          (f"sum(rate(howdah_wakes_total[{RATE}]))", "wakes"), (f"sum(rate(howdah_polls_total[{RATE}]))", "polls"),
          (f"sum(rate(howdah_claims_empty_total[{RATE}]))", "empty claims"), unit="ops", about="What makes the workers look."),
    graph("In hand, and acks that wait", 8, ("sum(howdah_jobs_in_hand)", "in hand"), ("sum(howdah_acks_waiting)", "acks waiting"), about="Claimed and not started; ended and not written. The second grows while the database is away."),
]  # fmt: skip

DATABASE = [
    graph("Size of the tables", 8, ("max by (table) (howdah_table_bytes)", "{{table}}"), unit="bytes", about="With their indexes."),
    graph("Dead rows", 8, ("max by (table) (howdah_table_dead_rows)", "{{table}}"), about="By the server's estimate. They should rise and fall."),
    graph("Oldest snapshot", 8, ("max by (holder) (howdah_xmin_age_transactions)", "{{holder}}"), about="In transactions, by who holds it; `howdah doctor` says who it is."),
    graph("Queue of notifications", 6, ("max(howdah_notify_queue_usage_ratio)", "used"), unit="percentunit", about="Full, and NOTIFY fails for everybody: a session listens and does not read."),
    graph("Days of history made ahead", 6, ("max(howdah_history_partitions_ahead)", "days"), about="0: acks make the missing day themselves, and wait for it."),
    graph("Reconnects", 6, ("sum by (connection) (increase(howdah_reconnects_total[5m]))", "{{connection}}"), about="In five minutes, by the engine's connection."),
    graph("Time of a count", 6, ("max(howdah_census_seconds)", "count"), unit="s", about="The leading worker's look at the database."),
]  # fmt: skip

WORKERS = [
    graph("CPU", 8, (f'rate(process_cpu_seconds_total{{job=~".*howdah.*"}}[{RATE}])', "{{instance}}"), unit="percentunit", about="Of one core."),
    graph("Memory", 8, ('process_resident_memory_bytes{job=~".*howdah.*"}', "{{instance}}"), unit="bytes", about="Flat is well."),
    graph("Slots used", 8, ("sum by (instance) (howdah_slots_used)", "{{instance}}"), about="By worker."),
    graph("Loop lag", 8, ("howdah_loop_lag_seconds", "{{instance}}"), unit="s", about="How late the main loop's pulse came, the worst of 15 s."),
    graph("Loop blocked, by kind", 8, (f'sum by (kind) (rate(howdah_loop_blocked_seconds_total{{kind=~"$kind"}}[{RATE}]))', "{{kind}}"), unit="percentunit", about="Share of the time that handlers of a kind hold up all others."),
    graph("Heartbeat's age", 8, ("howdah_heartbeat_age_seconds", "{{instance}}"), unit="s", about="A third of the ttl at most, when all is well."),
]  # fmt: skip


if __name__ == "__main__":
    main()
