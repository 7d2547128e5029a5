"""`howdah top`: a screen that is drawn anew every second, or one frame of it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import click
import uvloop
from rich.console import Console
from rich.live import Live

from howdah.config import load_config
from howdah.database import connected
from howdah.errors import ConfigError
from howdah.top.frame import frame
from howdah.top.snapshot import Flow, take

if TYPE_CHECKING:
    from howdah.config import Config


@click.command()
@click.option("--database-url", metavar="URL", help="Where the jobs are [HOWDAH_DATABASE_URL, then DATABASE_URL].")
@click.option("--once", is_flag=True, help="Print one frame and leave: for pipes and screenshots.")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds between frames."
)
def top(*, once: bool, interval: float, **flags: Any) -> None:
    """Watch queues, workers and running jobs; Ctrl-C ends it. Cheap however many jobs there are: ~ marks an estimate.

    \b
    howdah top
    howdah top --once | head -20
    """
    try:
        config = load_config(**flags)
        url = _url(config)
    except ConfigError as error:
        click.echo(f"howdah: {error}", err=True)
        sys.exit(78)
    try:
        uvloop.run(_watch(url, once=once, interval=interval))
    except KeyboardInterrupt:
        return
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        click.echo(f"howdah: {str(error) or type(error).__name__}", err=True)
        sys.exit(1)


async def _watch(url: str, *, once: bool, interval: float) -> None:
    """Draw until told to stop; a database that goes away is waited for, with the last frame standing."""
    console, flow = Console(highlight=False), Flow()
    place = _place(url)
    if once:
        async with connected(url, name="top") as connection:
            await take(connection, place, flow)
            await asyncio.sleep(interval)
            now = await take(connection, place, flow)
        console.print(frame(now, console.width, console.height if console.is_terminal else 50))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                async with connected(url, name="top") as connection:
                    while True:
                        now = await take(connection, place, flow)
                        live.update(frame(now, console.width, console.height), refresh=True)
                        await asyncio.sleep(interval)
            except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, OSError) as error:
                live.update(f"the database is away: {str(error) or type(error).__name__}", refresh=True)
                await asyncio.sleep(interval)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2] or 'local'}{parts.path}"


def _url(config: Config) -> str:
    if config.database_url is None:
        raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
    return config.database_url
