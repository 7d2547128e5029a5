"""Until work is done: wait."""

from __future__ import annotations

import asyncio
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click

from howdah.cli.failures import FAILED, TIMED_OUT, die, misuse
from howdah.cli.options import database_option, duration, json_option, positive_id
from howdah.cli.output import emit
from howdah.cli.session import with_connection
from howdah.cli.words import counted, one_line
from howdah.inspection import ENDED_STATES, job_state, live_jobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    import asyncpg

    from howdah.inspection import Row

T = TypeVar("T")

#: How often it looks: at first, and in the end, in seconds; and never more than a tenth of the time.
SOON, LATE, SHARE = 0.02, 1.0, 10
#: How often it says what it waits for, in seconds.
SAYS_EVERY = 5.0


@click.command()
@database_option
@click.argument("job", type=positive_id, required=False)
@click.option("--subject", metavar="TEXT", help="Wait for all live jobs about this subject.")
@click.option("--kind", metavar="NAME", help="Wait for all live jobs of this kind.")
@click.option("--queue", metavar="NAME", help="Wait for all live jobs of this queue.")
@click.option("--timeout", type=duration, metavar="DURATION", help="The longest wait: 30, '5 minutes' [default: none].")
@json_option
def wait(
    *,
    job: int | None,
    subject: str | None,
    kind: str | None,
    queue: str | None,
    timeout: timedelta | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Wait until a job has ended, or until no live job is left of a subject, kind or queue; several narrow it down.

    Says on stderr what is still queued or running. Scheduled and retrying jobs count as live. Exit 0 when it is done, 1 if the
    one job died or was cancelled, or is not there, 124 when the timeout has passed.

    \b
    howdah wait 42 --timeout 60
    howdah wait --subject course:42 --timeout '5 minutes'
    howdah wait --queue mail
    """
    if (job is None) == (subject is None and kind is None and queue is None):
        problem = (
            "a job, or a subject, kind or queue, not both"
            if job
            else "for what? A job, or --subject, --kind or --queue"
        )
        misuse(problem)
    seconds = timeout.total_seconds() if timeout is not None else None
    if job is not None:
        _wait_for_one(job, flags, seconds, as_json=as_json)
        return
    left = with_connection("wait", flags, _until_none, seconds, (queue, kind, subject))
    if as_json:
        emit({"done": not left, "left": left})
    if left:
        _time_out(_picture(left))
    elif not as_json:
        click.echo("done")


def _wait_for_one(job: int, flags: dict[str, Any], seconds: float | None, *, as_json: bool) -> None:
    row = with_connection("wait", flags, _until_ended, job, seconds)
    if row is None:
        die(f"there is no job {job}; its history may have been dropped")
    if as_json:
        emit(row)
    if row["state"] not in ENDED_STATES:
        _time_out(f"job {job} is {row['state']}")
    if not as_json:
        error = f": {row['error']}" if row["state"] == "dead" and row["error"] else ""
        click.echo(one_line(f"job {job} {'is ' if row['state'] != 'completed' else ''}{row['state']}{error}"))
    if row["state"] != "completed":
        sys.exit(FAILED)


async def _until_ended(connection: asyncpg.Connection, job: int, seconds: float | None) -> Row | None:
    async def look() -> tuple[bool, Row | None, str]:
        row = await job_state(connection, job)
        over = row is None or row["state"] in ENDED_STATES
        return over, row, f"job {job} is {row['state'] if row is not None else 'gone'}"

    return await _until(look, seconds)


async def _until_none(
    connection: asyncpg.Connection, seconds: float | None, which: tuple[str | None, str | None, str | None]
) -> dict[str, int]:
    async def look() -> tuple[bool, dict[str, int], str]:
        left = await live_jobs(connection, *which)
        return not left, left, _picture(left)

    return await _until(look, seconds)


async def _until(look: Callable[[], Awaitable[tuple[bool, T, str]]], seconds: float | None) -> T:
    """Look until it is over, or the time is; gives what was seen last."""
    begun, pause, said, said_at = monotonic(), SOON, "", float("-inf")
    while True:
        before = monotonic()
        over, seen, picture = await look()
        after = monotonic()
        remaining = None if seconds is None else begun + seconds - after
        if over or (remaining is not None and remaining <= 0):
            return seen
        if picture != said and after - said_at >= SAYS_EVERY:
            click.echo(one_line(f"waiting: {picture}"), err=True)
            said, said_at = picture, after
        pause = min(pause * 1.5, LATE)
        nap = max(pause, (after - before) * SHARE)
        await asyncio.sleep(nap if remaining is None else min(nap, remaining))


def _picture(left: dict[str, int]) -> str:
    states = ", ".join(f"{number:,} {state}" for state, number in sorted(left.items()))
    return f"{counted(sum(left.values()), 'job')} left: {states}"


def _time_out(picture: str) -> None:
    click.echo(one_line(f"howdah: time is up: {picture}"), err=True)
    sys.exit(TIMED_OUT)
