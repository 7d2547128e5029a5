"""What is known of jobs: jobs, show, explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from howdah.cli import tables
from howdah.cli.failures import die
from howdah.cli.options import database_option, json_option, positive_id
from howdah.cli.output import emit
from howdah.cli.selection import filters, states, wanted
from howdah.cli.session import with_connection
from howdah.cli.words import listed, one_line, safe
from howdah.inspection import (
    ENDED_STATES,
    LIVE_STATES,
    By,
    Wanted,
    explain_job,
    group_jobs,
    known_queues,
    list_jobs,
    show_job,
)

if TYPE_CHECKING:
    import asyncpg

    from howdah.inspection import Row


@click.command()
@database_option
@states(*LIVE_STATES, *ENDED_STATES)
@filters
@click.option("--group-by", type=click.Choice(get_args(By)), help="Count instead of listing.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="The most lines.")
@json_option
def jobs(*, group_by: By | None, limit: int, as_json: bool, **options: Any) -> None:
    """List jobs, live and ended, the newest first; or count them with --group-by.

    Every state is an option of its own, too: --running, --retrying, … Fields that a kind declares secret are masked.

    \b
    howdah jobs --dead --since '2 hours'
    howdah jobs --group-by error                    # the same failure of 412 jobs is one line
    howdah jobs --error 8c1f02aa --json             # the jobs behind one of those lines
    howdah jobs --running --queue mail
    howdah jobs --subject course:42 --limit 5
    """
    asked = wanted(options)
    rows, queues = with_connection("jobs", options, _jobs, asked, group_by, limit)
    if as_json:
        for row in rows:
            emit({name: value for name, value in row.items() if name != "asked_at"})
        return
    if not rows:
        known = f"; known queues: {listed(queues, 10)}" if queues else ""
        missing = asked.queue is not None and asked.queue not in queues
        click.echo(
            one_line(
                f"no job in queue {asked.queue!r}{known}"
                if missing
                else "no job fits"
                if asked != Wanted()
                else "no jobs yet"
            ),
            err=True,
        )
    elif group_by is None:
        tables.show(tables.jobs_table(rows))
        if len(rows) == limit:
            click.echo(f"the newest {limit}; --limit shows more", err=True)
    elif group_by == "error":
        tables.show(*tables.errors_list(rows))
    else:
        tables.show(tables.groups_table(rows, group_by))


@click.command()
@database_option
@click.argument("job", type=positive_id)
@json_option
def show(*, job: int, as_json: bool, **flags: Any) -> None:
    """Show everything that is known of one job: its times, payload, progress, result, and every error with its stack.

    Fields that its kind declares secret are masked. Exit 1 if there is no such job.

    \b
    howdah show 42
    howdah show 42 --json | jq .payload
    """
    row = with_connection("show", flags, show_job, job)
    if row is None:
        die(_nowhere(job))
    if as_json:
        emit({name: value for name, value in row.items() if name != "asked_at"})
    else:
        tables.show(*tables.job_sheet(row), cut=False)


@click.command()
@database_option
@click.argument("job", type=positive_id)
@json_option
def explain(*, job: int, as_json: bool, **flags: Any) -> None:
    """Say in a sentence why a job is not running, and what would change that. Exit 1 if there is no such job.

    \b
    howdah explain 42
    """
    text = with_connection("explain", flags, explain_job, job)
    if as_json:
        emit({"id": job, "explanation": text})
    else:
        click.echo(safe(text, keep="\n"))


async def _jobs(
    connection: asyncpg.Connection, asked: Wanted, group_by: By | None, limit: int
) -> tuple[list[Row], list[str]]:
    if group_by is None:
        rows = await list_jobs(connection, asked, limit)
    else:
        rows = (await group_jobs(connection, asked, group_by))[:limit]
    return rows, await known_queues(connection) if not rows and asked.queue is not None else []


def _nowhere(job: int) -> str:
    return f"there is no job {job}; its history may have been dropped"
