"""What people do to limits, and see of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from howdah.cli.options import database_option, json_option
from howdah.cli.output import emit
from howdah.cli.session import with_connection
from howdah.cli.words import one_line
from howdah.queries import SQL

if TYPE_CHECKING:
    import asyncpg


@click.group()
def limit() -> None:
    """List, set and remove limits: how many jobs of a key may run at once, or start in a second, over all workers.

    A limit is named as jobs name it (enqueue --limits api), or is a pattern such as chat:*, which holds for each such name by itself.
    kind:NAME and queue:NAME hold for all jobs of a kind or a queue.

    \b
    howdah limit list
    howdah limit set 'chat:*' --rate 1
    howdah limit set kind:render --concurrency 2
    """


@limit.command("list")
@database_option
@json_option
def show(*, as_json: bool, **flags: Any) -> None:
    """List the limits, with what runs under them and waits for them.

    \b
    howdah limit list
    """
    rows = with_connection("limit", flags, _list)
    if as_json:
        for row in rows:
            emit(row)
    elif not rows:
        click.echo("no limits")
    else:
        for row in rows:
            click.echo(one_line(_describe(row)))


@limit.command("set")
@database_option
@click.argument("name")
@click.option("--concurrency", type=click.IntRange(min=0), help="How many may run at once; 0: nothing starts.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="How many may start in a second.")
@click.option(
    "--burst",
    type=click.IntRange(min=1),
    help="How many of these at one moment [default: 1, or a fiftieth of the rate].",
)
def set_(*, name: str, concurrency: int | None, rate: float | None, burst: int | None, **flags: Any) -> None:
    """Set a limit from now on, whatever it was. What runs goes on; nothing new starts until the key is below it.

    \b
    howdah limit set api --concurrency 5
    howdah limit set 'chat:*' --rate 1
    howdah limit set kind:send_mail --rate 25 --burst 2
    """
    if concurrency is None and rate is None:
        raise click.UsageError("say --concurrency or --rate, or both")
    with_connection("limit", flags, _set, name, concurrency, rate, burst)
    click.echo(one_line(f"limit {name} is set"))


@limit.command()
@database_option
@click.argument("name")
def remove(*, name: str, **flags: Any) -> None:
    """Take a limit away: its jobs start when there are slots for them.

    \b
    howdah limit remove 'chat:*'
    """
    was_there = with_connection("limit", flags, _remove, name)
    click.echo(one_line(f"limit {name} is removed" if was_there else f"there was no limit {name}"))


async def _list(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(SQL["list_limits"])]


async def _set(
    connection: asyncpg.Connection, name: str, concurrency: int | None, rate: float | None, burst: int | None
) -> None:
    await connection.execute(SQL["set_limit"], name, concurrency, rate, burst)


async def _remove(connection: asyncpg.Connection, name: str) -> bool:
    return bool(await connection.fetchval(SQL["remove_limit"], name))


def _describe(row: dict[str, Any]) -> str:
    """Say a limit in a line."""
    rules = [] if row["concurrency"] is None else [f"{row['concurrency']} at once"]
    if row["rate"] is not None:
        rules.append(f"{row['rate']:g} a second, {row['burst']} at one moment")
    keys = f" (of {row['keys']} keys)" if row["name"].endswith("*") and row["keys"] else ""
    waiting = f"{row['waiting']}{' or more' if row['waiting_more'] else ''}"
    return f"{row['name']}: {'; '.join(rules)}; {row['running']} running{keys}, {waiting} waiting"
