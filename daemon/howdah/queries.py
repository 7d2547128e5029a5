"""The SQL files that ship with Howdah: found once, read once, complete or the import fails."""

from __future__ import annotations

from pathlib import Path

from howdah.errors import QueryFileError

QUERIES = (
    "ack",
    "ack_completed",
    "ack_fate",
    "ack_with",
    "apply_signals",
    "beat",
    "cancel",
    "cancel_jobs",
    "cancel_subject",
    "census",
    "claim",
    "claim_limited",
    "claim_suspect",
    "create_batch",
    "depth",
    "disclaim",
    "drop_partitions",
    "due_schedules",
    "enqueue",
    "enqueue_coalesced",
    "enqueue_job",
    "enqueue_lines",
    "enqueue_many",
    "enqueue_payloads",
    "enter",
    "explain",
    "find_behind",
    "find_ids",
    "find_jobs",
    "fire_schedule",
    "forsake",
    "group_jobs",
    "held",
    "idle",
    "is_idle",
    "job_state",
    "job_steps",
    "keep_step",
    "known_queues",
    "lacks",
    "leave",
    "list_jobs",
    "list_limits",
    "list_schedules",
    "live_jobs",
    "live_stats",
    "look_for_ends",
    "look_up",
    "make_partitions",
    "make_ready",
    "mark_schedule",
    "pause",
    "pause_schedule",
    "paused_queues",
    "queue_health",
    "recent_deaths",
    "register",
    "remove_limit",
    "report",
    "reschedule",
    "rescue",
    "rescue_orphans",
    "resume",
    "resume_queue",
    "resume_schedule",
    "retried_jobs",
    "retry",
    "retry_jobs",
    "say_asleep",
    "say_awake",
    "say_draining",
    "schedule",
    "schema_check",
    "set_limit",
    "settle",
    "show_job",
    "start",
    "stats",
    "steps",
    "tally",
    "unschedule",
    "watch",
)


def sql_folder() -> Path:
    """Give the folder that holds `migrations/` and `queries/`: inside the package, or at the top of a checkout."""
    here = Path(__file__).resolve()
    packaged = here.parent / "sql"
    return packaged if packaged.is_dir() else here.parents[2] / "sql"


def read_query(name: str, folder: str = "queries") -> str:
    """Give the text of one statement of a folder of `sql/`. Raises QueryFileError if the file is missing."""
    path = sql_folder() / folder / f"{name}.sql"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QueryFileError(path) from None


SQL = {name: read_query(name) for name in QUERIES}
