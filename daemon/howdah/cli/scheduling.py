"""Schedules from a shell: list, add, pause, resume, remove, next."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, get_args

import click

from howdah.cli.enqueueing import say_notice
from howdah.cli.failures import FAILED, die, misuse
from howdah.cli.options import database_option, duration, json_object, json_option
from howdah.cli.output import emit
from howdah.cli.session import with_connection
from howdah.cli.words import now, one_line, somebody
from howdah.errors import ScheduleError
from howdah.queries import SQL
from howdah.schedules import Missed, Overlap, Timetable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    import asyncpg

PREVIEW = 5


def time_zone(text: str) -> str:
    """Read a time zone's name."""
    try:
        Timetable("0 0 * * *", text)
    except ScheduleError as error:
        raise click.BadParameter(str(error)) from None
    return text


def expression(text: str) -> str:
    """Read a cron expression."""
    try:
        Timetable(text)
    except ScheduleError as error:
        raise click.BadParameter(str(error)) from None
    return text


zone_option = click.option(
    "--time-zone", type=time_zone, default="UTC", show_default=True, metavar="ZONE", help="Such as Europe/Berlin."
)


@click.group()
def schedule() -> None:
    """Jobs that are made by themselves, at the slots of a cron expression in a time zone.

    \b
    howdah schedule list
    howdah schedule add nightly '0 3 * * *' tidy_up '{"days": 30}' --time-zone Europe/Berlin
    howdah schedule next '30 2 * * *' --time-zone America/New_York
    """


@schedule.command("list")
@database_option
@json_option
def list_all(*, as_json: bool, **flags: Any) -> None:
    """List every schedule: when it fires next, what it made last, and what keeps it from firing.

    With --json an object a line, with the columns of howdah.schedule_status and next, the next five slots.

    \b
    howdah schedule list
    howdah schedule list --json | jq 'select(.problem)'
    """
    rows = with_connection("schedule", flags, _find, None)
    if as_json:
        for row in rows:
            emit({**row, "next": [slot.astimezone(UTC) for slot in _preview(row)]})
    elif rows:
        from howdah.cli import tables  # noqa: PLC0415  # programs need none

        tables.show(tables.schedules_table(rows))
        for row in rows:
            if row["problem"]:
                click.echo(one_line(f"{row['name']} cannot fire: {row['problem']}"), err=True)
    else:
        click.echo("no schedules yet", err=True)


@schedule.command()
@database_option
@click.argument("name")
@click.argument("cron", type=expression)
@click.argument("kind")
@click.argument("payload", required=False, type=json_object)
@zone_option
@click.option(
    "--missed",
    type=click.Choice(get_args(Missed)),
    default="one",
    show_default=True,
    help="Slots that came while nobody could fire them: none is made up for, the latest, or all of them (at most 1000).",
)
@click.option(
    "--overlap",
    type=click.Choice(get_args(Overlap)),
    default="allow",
    show_default=True,
    help="skip: no job for a slot while the one before is queued or runs.",
)
@click.option("--jitter", type=duration, metavar="DURATION", help="Each job starts up to so much later.")
@click.option("--queue", metavar="NAME", help="[default: the kind's, else default]")
@click.option("--priority", type=click.IntRange(0, 10), help="10 is the most urgent [default: the kind's, else 0].")
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="1: at most once [default: the kind's, else 3].")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="How long an attempt may take [default: the handler's]."
)
@click.option("--subject", metavar="TEXT", help="What the jobs are about: to cancel and to wait by.")
@click.option("--headers", type=json_object, metavar="JSON", help="An object that goes along with each job.")
def add(
    *, name: str, cron: str, kind: str, payload: str | None, time_zone: str, jitter: timedelta | None, **given: Any
) -> None:
    """Make a schedule, or change the one of this name, and show its next five slots.

    CRON is minute, hour, day of month, month and day of week; a sixth field before them is the second. PAYLOAD is a JSON object;
    - reads it from standard input.

    \b
    howdah schedule add nightly '0 3 * * *' tidy_up '{"days": 30}' --time-zone Europe/Berlin --overlap skip
    howdah schedule add month_end '0 18 L * *' close_books --missed all
    """
    flags = {"database_url": given.pop("database_url")}
    policies = [given["missed"], given["overlap"], jitter or duration("0")]
    options = [given[option] for option in ("queue", "priority", "max_attempts", "timeout", "subject", "headers")]
    made = with_connection("schedule", flags, _add, [name, cron, kind, payload, time_zone, *policies, *options])
    click.echo(one_line(f"schedule {name} is {'made' if made else 'changed'}; its next slots:"))
    _say_slots(Timetable(cron, time_zone).preview(now(), PREVIEW))


@schedule.command()
@database_option
@click.argument("name")
@click.option("--by", metavar="NAME", help="Who pauses it [default: user@host].")
def pause(*, name: str, by: str | None, **flags: Any) -> None:
    """Let a schedule fire no more, whatever restarts, until howdah schedule resume; jobs that it made go on.

    \b
    howdah schedule pause nightly
    """
    fresh = with_connection("schedule", flags, _ask, "pause_schedule", name, by or somebody())
    click.echo(one_line(f"schedule {name} is paused" if fresh else f"schedule {name} was paused already"))


@schedule.command()
@database_option
@click.argument("name")
def resume(*, name: str, **flags: Any) -> None:
    """Let a schedule fire again, from its next slot on: those that came meanwhile are not made up for.

    \b
    howdah schedule resume nightly
    """
    was = with_connection("schedule", flags, _ask, "resume_schedule", name)
    click.echo(one_line(f"schedule {name} is resumed" if was else f"schedule {name} was not paused"))


@schedule.command()
@database_option
@click.argument("name")
def remove(*, name: str, **flags: Any) -> None:
    """Take a schedule away; jobs that it made stay. One that a handler declares is paused instead.

    \b
    howdah schedule remove nightly
    """
    with_connection("schedule", flags, _ask, "unschedule", name)
    click.echo(one_line(f"schedule {name} is removed"))


@schedule.command("next")
@database_option
@click.argument("what", metavar="NAME|CRON")
@zone_option
@click.option("--count", type=click.IntRange(1, 1000), default=PREVIEW, show_default=True, help="How many slots.")
@json_option
def upcoming(*, what: str, time_zone: str, count: int, as_json: bool, **flags: Any) -> None:
    """Show the next slots of a schedule, or of a cron expression (five or six fields), which needs no database.

    \b
    howdah schedule next nightly
    howdah schedule next '30 2 * * *' --time-zone America/New_York --count 10
    """
    if len(what.split()) > 1:
        try:
            slots = Timetable(what, time_zone).preview(now(), count)
        except ScheduleError as error:
            misuse(str(error))
    else:
        rows = with_connection("schedule", flags, _find, what)
        if not rows:
            die(f"there is no schedule {what!r} (howdah schedule list names them)", FAILED)
        slots = _preview(rows[0], count)
        if rows[0]["paused_at"] is not None:
            click.echo(one_line(f"schedule {what} is paused"), err=True)
        elif rows[0]["problem"]:
            click.echo(one_line(f"schedule {what} cannot fire: {rows[0]['problem']}"), err=True)
    if as_json:
        for slot in slots:
            emit({"local": slot, "utc": slot.astimezone(UTC)})
    else:
        _say_slots(slots)


def _preview(row: Mapping[str, Any], count: int = PREVIEW) -> list[datetime]:
    """Give a schedule's next slots; none if its expression or zone cannot be read here."""
    try:
        return Timetable(row["cron"], row["time_zone"]).preview(row["asked_at"], count)
    except ScheduleError:
        return []


def _say_slots(slots: Sequence[datetime]) -> None:
    for slot in slots:
        click.echo(f"{slot:%a %Y-%m-%d %H:%M:%S %Z}   {slot.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}")


async def _find(connection: asyncpg.Connection, name: str | None) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(SQL["list_schedules"], name)]


async def _add(connection: asyncpg.Connection, arguments: list[Any]) -> bool:
    connection.add_log_listener(say_notice)
    return bool(await connection.fetchval(SQL["schedule"], *arguments))


async def _ask(connection: asyncpg.Connection, query: str, *arguments: Any) -> bool:
    return bool(await connection.fetchval(SQL[query], *arguments))
