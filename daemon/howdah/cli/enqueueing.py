"""How work comes in from a shell: enqueue."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import asyncpg
import click
import orjson

from howdah.cli.failures import misuse
from howdah.cli.options import (
    database_option,
    duration,
    json_object,
    json_option,
    moment,
    object_problem,
    positive_id,
)
from howdah.cli.output import emit, progress
from howdah.cli.session import with_connection
from howdah.cli.words import counted, one_line
from howdah.errors import HowdahError
from howdah.queries import SQL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: How many lines go into one call.
BATCH = 1000
#: The arguments of howdah.enqueue behind kind and payload, in its order.
ARGUMENTS = (
    "queue",
    "priority",
    "run_at",
    "delay",
    "max_attempts",
    "timeout",
    "unique_key",
    "on_conflict",
    "subject",
    "depends_on",
    "batch",
    "limits",
    "fifo_key",
    "expires_at",
    "headers",
    "on_failed_dependency",
)


@click.command()
@database_option
@click.argument("kind", required=False)
@click.argument("payload", required=False, type=json_object)
@click.option("--queue", metavar="NAME", help="[default: the kind's, else default]")
@click.option("--priority", type=click.IntRange(0, 10), help="10 is the most urgent [default: the kind's, else 0].")
@click.option("--delay", type=duration, metavar="DURATION", help="Not before it has passed: 90, '10 minutes', 1h30m.")
@click.option(
    "--run-at", type=moment, metavar="TIME", help="Not before: 2026-01-31T09:00, in local time unless it says +00:00."
)
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="1: at most once [default: the kind's, else 3].")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="How long an attempt may take [default: the handler's]."
)
@click.option("--expires-at", type=moment, metavar="TIME", help="Cancelled if it has not been started by then.")
@click.option("--unique-key", metavar="TEXT", help="At most one live job has it.")
@click.option(
    "--on-conflict",
    type=click.Choice(["skip", "replace", "error"]),
    default="skip",
    show_default=True,
    help="What if a live job has the unique key: leave it, give it the new payload and time, or exit 1.",
)
@click.option("--subject", metavar="TEXT", help="What it is about, such as course:42: to cancel and to wait by.")
@click.option(
    "--depends-on",
    type=positive_id,
    multiple=True,
    metavar="JOB",
    help="Waits for this job; more than once: for all of them.",
)
@click.option(
    "--on-failed-dependency",
    type=click.Choice(["cancel", "run"]),
    default="cancel",
    show_default=True,
    help="What if a job that it waits for dies or is cancelled: cancelled, too, or run all the same.",
)
@click.option("--batch", type=positive_id, metavar="BATCH", help="Belongs to this batch.")
@click.option(
    "--limits",
    multiple=True,
    metavar="NAME",
    help="Runs only while this limit has room; more than once: while all of them have.",
)
@click.option("--fifo-key", metavar="TEXT", help="Runs after all earlier jobs of this key, one at a time.")
@click.option("--headers", type=json_object, metavar="JSON", help="An object that goes along, such as a trace.")
@click.option(
    "--many",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help="One job a line, all or none; - reads standard input.",
)
@json_option
def enqueue(
    *,
    kind: str | None,
    payload: str | None,
    many: IO[str] | None,
    as_json: bool,
    database_url: str | None,
    **given: Any,
) -> None:
    """Enqueue a job and print its id. PAYLOAD is a JSON object; - reads it from standard input.

    With --many every line is a JSON object with the names of howdah.enqueue's arguments (kind, payload, queue, run_at, …);
    KIND, PAYLOAD and the options then hold for the lines that do not say otherwise. Exit 2 for what is wrong here, 1 for what the
    database refuses.

    \b
    howdah enqueue sync_like_count '{"post_id": "7e6c…"}' --delay '10 minutes'
    jq -c .order order.json | howdah enqueue ship_order - --unique-key order:7
    howdah enqueue send_mail --many mails.jsonl --queue mail --json
    """
    flags = {"database_url": database_url}
    given = {name: (list(value) or None) if isinstance(value := given[name], tuple) else value for name in ARGUMENTS}
    if given["run_at"] is not None and given["delay"] is not None:
        misuse("--run-at and --delay are both given; say one of them")
    if many is not None:
        defaults = {"kind": kind, "payload": payload and orjson.Fragment(payload), **given}
        defaults["headers"] = given["headers"] and orjson.Fragment(given["headers"])
        with progress("enqueueing", None) as step:
            rows = with_connection("enqueue", flags, _enqueue_lines, many, defaults, step)
        _say_many(rows, as_json=as_json)
        return
    if kind is None:
        misuse("which kind? Say howdah enqueue KIND [PAYLOAD], or --many FILE")
    row = with_connection("enqueue", flags, _enqueue, [kind, payload or "{}", *(given[name] for name in ARGUMENTS)])
    if as_json:
        emit(dict(row))
    else:
        click.echo(f"{row['id']}" if row["created"] else f"{row['id']} (it was there already)")


async def _enqueue(connection: asyncpg.Connection, arguments: list[Any]) -> asyncpg.Record:
    connection.add_log_listener(say_notice)
    row = await connection.fetchrow(SQL["enqueue_job"], *arguments)
    if row is None:
        raise HowdahError("enqueue gave no row")
    return row


async def _enqueue_lines(
    connection: asyncpg.Connection,
    lines: IO[str],
    defaults: Mapping[str, Any],
    step: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Enqueue every line in one transaction; what is refused names its line."""
    defaults_text = orjson.dumps(
        {name: value for name, value in defaults.items() if value is not None}, default=_seconds
    ).decode()
    rows: list[dict[str, Any]] = []
    async with connection.transaction():
        for numbers, texts in _batches(lines):
            try:
                found = await connection.fetch(SQL["enqueue_lines"], f"[{','.join(texts)}]", defaults_text)
            except asyncpg.PostgresError as error:
                if not str(error.sqlstate).startswith(("JB", "22")):  # not about the jobs
                    raise
                raise HowdahError(_at_line(error, numbers)) from None
            rows += [{"line": numbers[row["ordinal"] - 1], "id": row["id"], "created": row["created"]} for row in found]
            step(len(found))
    return rows


def _batches(lines: IO[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Give the lines that are not empty with their numbers, so many at once. Refuses the first that is no object."""
    numbers: list[int] = []
    texts: list[str] = []
    try:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text:
                continue
            problem = object_problem(text)
            if problem is not None:
                misuse(f"line {number}: {problem}; nothing was enqueued")
            numbers.append(number)
            texts.append(text)
            if len(texts) == BATCH:
                yield numbers, texts
                numbers, texts = [], []
    except UnicodeDecodeError as error:
        misuse(f"it is not UTF-8: {error}; nothing was enqueued")
    if texts:
        yield numbers, texts


def _at_line(error: asyncpg.PostgresError, numbers: list[int]) -> str:
    """Say what the database refused, with the line's number in the place of the job's."""
    text, hint = str(error.args[0]).removeprefix("howdah: "), getattr(error, "hint", None)
    words = text.split(" ", 2)
    if words[0] == "job" and len(words) == 3 and words[1].rstrip(":").isdigit():
        text = f"line {numbers[int(words[1].rstrip(':')) - 1]}: {words[2]}"
    return f"{text}{f' ({hint})' if hint else ''}; nothing was enqueued"


def _say_many(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            emit(row)
        return
    there = sum(not row["created"] for row in rows)
    click.echo(f"enqueued {counted(len(rows) - there, 'job')}{f'; {there:,} were there already' if there else ''}")


def say_notice(_connection: Any, message: asyncpg.PostgresLogMessage) -> None:
    """Print what the database noticed, such as a kind that it does not know."""
    if message.severity in {"NOTICE", "WARNING"}:
        click.echo(one_line(f"howdah: {str(message.message).removeprefix('howdah: ')}"), err=True)


def _seconds(value: Any) -> str:
    return f"{value.total_seconds()} seconds"
