"""What people do to jobs: retry, cancel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from howdah.bulk import Report, already_retried, cancel_jobs, retry_jobs
from howdah.cli.failures import FAILED
from howdah.cli.options import database_option, dry_run_option, json_option, positive_id, yes_option
from howdah.cli.output import emit, progress
from howdah.cli.selection import consent, filters, need_consent, need_selection, states, wanted
from howdah.cli.session import with_connection
from howdah.cli.words import counted, listed, one_line, somebody
from howdah.inspection import LIVE_STATES, find_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from howdah.inspection import Wanted

limit_option = click.option("--limit", type=click.IntRange(min=1), help="The most jobs, the oldest first.")


@click.command()
@database_option
@click.argument("job", nargs=-1, type=positive_id)
@states("dead", "cancelled", "completed", default=("dead",))
@filters
@limit_option
@dry_run_option
@yes_option
@json_option
def retry(
    *,
    job: tuple[int, ...],
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make new jobs of ended ones: of those that are named, or of all that the filters find.

    The old job stays as it is; the new one knows it as retried_from. Filters pass over what was retried before. A job
    whose unique key a live job holds is left out, and said. Exit 1 if any job could not be retried, or none is there by that id;
    exit 2 if the question cannot be asked and --yes is missing.

    \b
    howdah retry 42 43
    howdah retry --kind send_mail --since '2 hours' --dry-run
    howdah retry --error 8c1f02aa --yes               # a fingerprint of howdah jobs --group-by error
    howdah retry --state dead                         # all of them
    """
    need_selection(job, options)
    if not job and not dry_run:
        need_consent(yes=yes)
    asked = wanted(options, default=("dead",))
    ids, passed_over = with_connection("retry", options, _to_retry, job, asked, limit)
    note = f"; {counted(passed_over, 'job')} retried before passed over" if passed_over else ""
    if dry_run or not ids:
        _preview("retry", ids, note, as_json=as_json)
        return
    if not job and not consent("Retry", len(ids), yes=yes):
        return
    with progress("retrying", len(ids)) as step:
        report = with_connection("retry", options, retry_jobs, ids, step)
    if as_json:
        _emit(report, "new_id")
    elif job:
        for old, new in report.done.items():
            click.echo(f"job {old} is retried as {new}")
    else:
        click.echo(f"retried {counted(len(report.done), 'job')}{note}")
    _finish(report, "retried", as_json=as_json)


@click.command()
@database_option
@click.argument("job", nargs=-1, type=positive_id)
@states(*LIVE_STATES)
@filters
@click.option("--by", metavar="NAME", help="Who cancels [default: user@host].")
@click.option("--reason", metavar="TEXT", help="Why; the job keeps it.")
@limit_option
@dry_run_option
@yes_option
@json_option
def cancel(
    *,
    job: tuple[int, ...],
    by: str | None,
    reason: str | None,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Cancel live jobs: those that are named, or all that the filters find.

    A queued job ends at once. A running one is told within a second, and keeps its true outcome if it ends first. Exit 1 if a
    job is not there or had ended otherwise; exit 2 if the question cannot be asked and --yes is missing.

    \b
    howdah cancel 42 --reason 'sent twice'
    howdah cancel --subject course:42 --dry-run
    howdah cancel --queue mail --kind newsletter --yes
    """
    need_selection(job, options)
    if not job and not dry_run:
        need_consent(yes=yes)
    asked = wanted(options, default=LIVE_STATES)
    ids = list(job) if job else with_connection("cancel", options, find_ids, asked, limit)
    if dry_run or not ids:
        _preview("cancel", ids, "", as_json=as_json)
        return
    if not job and not consent("Cancel", len(ids), yes=yes):
        return
    with progress("cancelling", len(ids)) as step:
        report = with_connection(
            "cancel", options, cancel_jobs, ids, by=by or somebody(), reason=reason, on_progress=step
        )
    for ended in [one for one, state in report.done.items() if state not in {"cancelled", "running"}]:
        report.refused[ended] = f"ended before: {report.done.pop(ended)}"
    if as_json:
        _emit(report, "state")
    elif job:
        for one, state in report.done.items():
            click.echo(f"job {one} is running and will be told" if state == "running" else f"job {one} is cancelled")
    else:
        told = sum(state == "running" for state in report.done.values())
        running = f"; {counted(told, 'running job')} will be told" if told else ""
        click.echo(f"cancelled {counted(len(report.done) - told, 'job')}{running}")
    _finish(report, "cancelled", as_json=as_json, fail=bool(job))


async def _to_retry(
    connection: asyncpg.Connection, job: Sequence[int], asked: Wanted, limit: int | None
) -> tuple[list[int], int]:
    """Give the jobs to retry, and how many were passed over because they have been retried."""
    if job:
        return list(job), 0
    found = await find_ids(connection, asked)
    before = await already_retried(connection, found)
    return [one for one in found if one not in before][:limit], len(before)


def _preview(verb: str, ids: Sequence[int], note: str, *, as_json: bool) -> None:
    if as_json:
        for one in ids:
            emit({"id": one})
    elif ids:
        click.echo(f"would {verb} {counted(len(ids), 'job')}: {listed(list(map(str, ids)), 10)}{note}")
    else:
        click.echo(f"no job to {verb}{note}", err=True)


def _emit(report: Report, name: str) -> None:
    for one, value in report.done.items():
        emit({"id": one, name: value})
    for one, reason in report.refused.items():
        emit({"id": one, "error": reason})


def _finish(report: Report, verb: str, *, as_json: bool, fail: bool = True) -> None:
    """Say what was refused, by reason, and leave with 1 if that is a failure."""
    for reason, ids in report.reasons().items():
        if not as_json:
            jobs = (
                f"job {ids[0]}" if len(ids) == 1 else f"{counted(len(ids), 'job')} ({listed(list(map(str, ids)), 5)})"
            )
            click.echo(one_line(f"howdah: {jobs} not {verb}: {reason}"), err=True)
    if report.refused and fail:
        sys.exit(FAILED)
