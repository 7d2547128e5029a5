"""Logging: one event one line, as JSON for machines or as text for people."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Literal

import orjson

from howdah.job import current_job, job_fields

LogStyle = Literal["json", "console"]

#: The id of this process's worker, in every line once it is known; new when a worker that was taken for dead enters again.
_worker: int | None = None

_HOSTILE = re.compile("[\x7f-\x9f]")
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(*, style: LogStyle, level: str) -> None:
    """Send every log line of the process to standard error in the given style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if style == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def set_worker(worker: int | None) -> None:
    """Let every line from now on say which worker wrote it."""
    global _worker  # noqa: PLW0603  # as the root logger is, it is the process's
    _worker = worker


def worker() -> int | None:
    """Give the worker that this process is."""
    return _worker


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_fields(record),
        }
        if record.exc_info:
            line["stack"] = _stack(self, record.exc_info)
        try:
            return _tame(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS))
        except (TypeError, ValueError):
            # Lone surrogates, integers beyond 64 bits, things whose text fails: a line that says less is better than none.
            return _tame(orjson.dumps({name: _plain(value) for name, value in line.items()}))


class ConsoleFormatter(logging.Formatter):
    """A line for people: time, level, event, fields as key=value; control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = _escape(f"{clock} {record.levelname.lower():<7} {record.getMessage()} {fields}".rstrip())
        if not record.exc_info:
            return line
        return "\n".join((line, *map(_escape, _stack(self, record.exc_info).split("\n"))))


def _stack(formatter: logging.Formatter, error: Any) -> str:
    """Give the stack of an exception, whose own code is called for it and may raise."""
    try:
        return formatter.formatException(error)
    except Exception:
        return "it cannot be told: its own code fails"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    job = current_job.get()
    fields = job_fields(job) if job is not None else {}
    if _worker is not None:
        fields["worker"] = _worker
    fields.update((name, value) for name, value in vars(record).items() if name not in _PLAIN)
    return fields


def _plain(value: Any) -> str | int | float | None:
    if value is None or (isinstance(value, int | float) and abs(value) < 1 << 63):
        return value
    try:
        return str(value).encode("utf-8", "replace").decode()
    except Exception:
        return f"a {type(value).__name__} that has no text"


def _iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"


def _tame(line: bytes) -> str:
    """Write out what JSON lets pass as it is and some terminals obey: DEL and C1. They stand in strings only."""
    return _HOSTILE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode())


def _escape(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
