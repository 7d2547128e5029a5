"""Options and types of values that several commands take."""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta

import click
import orjson

database_option = click.option(
    "--database-url", metavar="URL", help="Where the jobs are [HOWDAH_DATABASE_URL, then DATABASE_URL]."
)
handlers_option = click.option(
    "--handlers", metavar="MODULES", help="Modules with handlers, by comma [HOWDAH_HANDLERS; handlers]."
)
embedded_option = click.option("--embedded", is_flag=True, help="Use a PostgreSQL of our own, in the data directory.")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON, for programs: one object a line.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing; say which jobs it would be.")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_UNITS = {
    word: _SECONDS[letter]
    for letter, words in {
        "s": "s sec secs second seconds",
        "m": "m min mins minute minutes",
        "h": "h hour hours",
        "d": "d day days",
        "w": "w week weeks",
    }.items()
    for word in words.split()
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_MOST_SECONDS = 3_000_000_000
_EXAMPLE = "2026-01-31T09:00"
#: Where PostgreSQL's bigint ends.
_BIGINT = 2**63 - 1


def positive_id(text: str) -> int:
    """Read the id of a job or a batch."""
    if not text.strip().isdecimal() or not 0 < int(text) <= _BIGINT:
        raise click.BadParameter(f"{text[:100]!r} is not an id; say a number such as 42")
    return int(text)


def duration(text: str) -> timedelta:
    """Read '90', '90 s', '1h 30m', '2 hours', '7 days'; a number alone is seconds."""
    words, seconds, place = text.strip().lower(), 0.0, 0
    while (part := _PART.match(words, place)) is not None and (part[2] or "s") in _UNITS:
        seconds += float(part[1]) * _UNITS[part[2] or "s"]
        place = part.end()
    if place < len(words) or not words or seconds > _MOST_SECONDS:
        raise click.BadParameter(f"{text!r} is not a duration; say 90, '10 minutes', 1h30m or '7 days'")
    return timedelta(seconds=seconds)


def moment(text: str) -> datetime:
    """Read a time as in ISO 8601, in the local time zone if it names none."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time; say {_EXAMPLE} or {_EXAMPLE}Z") from None


def moment_or_ago(text: str) -> datetime | timedelta:
    """Read a time, or how long ago it was."""
    try:
        return duration(text.strip().lower().removesuffix("ago"))
    except click.BadParameter:
        pass
    try:
        return moment(text)
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is not a time; say '2 hours' (ago) or {_EXAMPLE}") from None


def json_object(text: str) -> str:
    """Read the text of a JSON object, `-` from standard input. It stays text: the database reads numbers that Python would round."""
    text = sys.stdin.read() if text == "-" else text
    problem = object_problem(text)
    if problem is not None:
        raise click.BadParameter(problem)
    return text


def object_problem(text: str) -> str | None:
    """Say what keeps a text from being a JSON object, and where; None if it is one."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        near = text[error.pos : error.pos + 20].split("\n", maxsplit=1)[0]
        return f"not JSON: {error.msg} at line {error.lineno} column {error.colno}{f', near {near!r}' if near else ''}"
    if not isinstance(found, dict):
        kind = {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(found), "number")
        return f"must be a JSON object, such as '{{\"id\": 1}}', not {kind}"
    return None
