"""The SQL files that ship with Howdah: found once, read once, complete or the import fails."""

from __future__ import annotations

from pathlib import Path

from howdah.errors import QueryFileError

QUERIES = (
    "ack",
    "ack_fate",
    "ack_with",
    "apply_signals",
    "beat",
    "claim",
    "claim_suspect",
    "disclaim",
    "drop_partitions",
    "enter",
    "idle",
    "keep_step",
    "leave",
    "make_partitions",
    "make_ready",
    "queue_depth",
    "queue_health",
    "register",
    "report",
    "rescue",
    "rescue_orphans",
    "say_asleep",
    "say_awake",
    "say_draining",
    "schema_check",
    "settle",
    "start",
    "stats",
    "steps",
)


def sql_folder() -> Path:
    """Give the folder that holds `migrations/` and `queries/`: inside the package, or at the top of a checkout."""
    here = Path(__file__).resolve()
    packaged = here.parent / "sql"
    return packaged if packaged.is_dir() else here.parents[2] / "sql"


def read_query(name: str) -> str:
    """Give the text of one of the daemon's statements. Raises QueryFileError if the file is missing."""
    path = sql_folder() / "queries" / f"{name}.sql"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QueryFileError(path) from None


SQL = {name: read_query(name) for name in QUERIES}
