"""How work comes in from a shell: enqueue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from howdah.cli.options import database_option
from howdah.cli.session import with_connection
from howdah.errors import HowdahError

if TYPE_CHECKING:
    import asyncpg


@click.command()
@database_option
@click.argument("kind")
@click.argument("payload", default="{}")
@click.option("--queue")
@click.option("--priority", type=int)
@click.option("--delay", metavar="INTERVAL", help="Such as '10 minutes'.")
@click.option("--unique-key")
@click.option("--on-conflict", type=click.Choice(["skip", "replace", "error"]), default="skip", show_default=True)
@click.option("--subject")
def enqueue(*, kind: str, payload: str, queue: str | None, priority: int | None, delay: str | None, unique_key: str | None,
            on_conflict: str, subject: str | None, **flags: Any) -> None:  # fmt: skip
    r"""Enqueue one job and print its id.

    \b
    howdah enqueue sync_like_count '{"post_id": "7e6c…"}' --delay '10 minutes'
    """
    arguments = [kind, payload, queue, priority, delay, unique_key, on_conflict, subject]
    row = with_connection("enqueue", flags, _enqueue, arguments)
    click.echo(f"{row['id']}" if row["created"] else f"{row['id']} (it was there already)")


async def _enqueue(connection: asyncpg.Connection, arguments: list[Any]) -> asyncpg.Record:
    row = await connection.fetchrow(
        "select * from howdah.enqueue($1, $2::text::jsonb, queue => $3, priority => $4, delay => $5::text::interval,"
        " unique_key => $6, on_conflict => $7, subject => $8)",
        *arguments,
    )
    if row is None:
        raise HowdahError("enqueue gave no row")
    return row
