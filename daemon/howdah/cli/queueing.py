"""What people do to queues, and see of them: pause, resume, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from howdah.cli.options import database_option, json_option
from howdah.cli.output import emit
from howdah.cli.session import with_connection
from howdah.cli.words import ago, listed, now, one_line, somebody
from howdah.config import QUEUE_NAME
from howdah.inspection import known_queues
from howdah.inspection import stats as ask_stats
from howdah.queries import SQL

if TYPE_CHECKING:
    import asyncpg


def queue_name(text: str) -> str:
    """Read a queue's name; refuses what no queue can be called."""
    if QUEUE_NAME.fullmatch(text) is None:
        raise click.BadParameter(f"{text[:100]!r} is no queue's name: one to 100 characters, none a control character")
    return text


@click.command()
@database_option
@click.argument("queue", type=queue_name, required=False)
@click.option("--all", "everything", is_flag=True, help="Every queue that is known: of workers, kinds and live jobs.")
@click.option("--by", metavar="NAME", help="Who pauses it [default: user@host].")
def pause(*, queue: str | None, everything: bool, by: str | None, **flags: Any) -> None:
    """Let no worker claim from a queue any more; what runs goes on. It holds until howdah resume, whatever restarts.

    \b
    howdah pause mail
    howdah pause --all            # of a restored backup, before a worker starts on it
    """
    if everything == (queue is not None):
        raise click.UsageError("say which queue, or --all")
    if queue is None:
        click.echo(one_line(_several(with_connection("pause", flags, _pause_all, by or somebody()), "paused")))
        return
    known = with_connection("pause", flags, _pause, queue, by or somebody())
    if queue not in known:
        others = f" (known: {listed(known, 10)})" if known else ""
        click.echo(
            one_line(f"howdah: nobody has used queue {queue!r} yet{others}; it is paused all the same"), err=True
        )
    click.echo(one_line(f"queue {queue} is paused"))


@click.command()
@database_option
@click.argument("queue", type=queue_name, required=False)
@click.option("--all", "everything", is_flag=True, help="Every queue that is paused.")
def resume(*, queue: str | None, everything: bool, **flags: Any) -> None:
    """Let a queue be claimed again, and wake its workers.

    \b
    howdah resume mail
    howdah resume --all
    """
    if everything == (queue is not None):
        raise click.UsageError("say which queue, or --all")
    if queue is None:
        click.echo(one_line(_several(with_connection("resume", flags, _resume_all), "resumed")))
        return
    was_paused = with_connection("resume", flags, _resume, queue)
    click.echo(one_line(f"queue {queue} is resumed" if was_paused else f"queue {queue} was not paused"))


@click.command()
@database_option
@json_option
def stats(*, as_json: bool, **flags: Any) -> None:
    """Count live jobs by queue, kind and state; say what is paused and what died in the last day.

    With --json one object: jobs (queue, kind, state, jobs, oldest_seconds), paused (name, paused_at, paused_by),
    died_last_day (queue, kind, jobs).

    \b
    howdah stats
    howdah stats --json | jq '.jobs[] | select(.state == "ready")'
    """
    found = with_connection("stats", flags, ask_stats)
    if as_json:
        emit(found)
        return
    from howdah.cli import tables  # noqa: PLC0415  # programs need none

    paused = {row["name"]: row for row in found["paused"]}
    deaths = {(row["queue"], row["kind"]): row["jobs"] for row in found["died_last_day"]}
    if found["jobs"] or deaths:
        tables.show(tables.stats_table(found["jobs"], paused, deaths))
    else:
        click.echo("no live jobs")
    for name, row in paused.items():
        by = f" by {row['paused_by']}" if row["paused_by"] else ""
        click.echo(one_line(f"queue {name} was paused {ago(row['paused_at'], now())}{by}"))
    if deaths:
        click.echo("howdah jobs --group-by error tells what died, and why", err=True)


async def _pause(connection: asyncpg.Connection, queue: str, by: str) -> list[str]:
    known = await known_queues(connection)
    await connection.execute(SQL["pause"], queue, by)
    return known


async def _pause_all(connection: asyncpg.Connection, by: str) -> list[str]:
    """Pause every known queue in one commit; gives their names."""
    async with connection.transaction():
        names = await known_queues(connection)
        for name in names:
            await connection.execute(SQL["pause"], name, by)
    return names


async def _resume_all(connection: asyncpg.Connection) -> list[str]:
    """Resume every paused queue in one commit; gives their names."""
    async with connection.transaction():
        names = [row["name"] for row in await connection.fetch(SQL["paused_queues"])]
        for name in names:
            await connection.execute(SQL["resume_queue"], name)
    return names


def _several(names: list[str], what: str) -> str:
    return f"{what}: {', '.join(names)}" if names else f"no queue to be {what}"


async def _resume(connection: asyncpg.Connection, queue: str) -> bool:
    return bool(await connection.fetchval(SQL["resume_queue"], queue))
