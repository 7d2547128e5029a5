"""What commands do before their work: settings, and one connection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import asyncpg
import click

from howdah.config import Config, load_config
from howdah.database import CALL_TIMEOUT, CONNECT_TIMEOUT, connected
from howdah.errors import ConfigError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

P = ParamSpec("P")
T = TypeVar("T")


def with_connection(
    name: str,
    flags: dict[str, Any],
    call: Callable[Concatenate[asyncpg.Connection, P], Coroutine[Any, Any, T]],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Run a coroutine function with a connection to the database that the settings name; gives what it gives.

    One try: a person or a script that asks wants to be told, not to wait. Raises ConfigError, DatabaseUnavailableError. A statement
    that is not answered for a minute is given up, except where it may take long: a migration.
    """
    patience = None if name == "migrate" else CALL_TIMEOUT

    async def run() -> T:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(connected(url, name=name, call_timeout=patience))
            except OSError as error:
                raise DatabaseUnavailableError(f"no database answers at {_place(url)}: {_reason(error)}") from None
            except (asyncpg.InterfaceError, ValueError) as error:
                raise ConfigError("HOWDAH_DATABASE_URL", str(error)) from None
            try:
                return await call(connection, *arguments, **options)
            except TimeoutError as error:
                if str(error):
                    raise
                raise DatabaseUnavailableError(
                    f"{_place(url)} has gone silent: nothing heard for {CALL_TIMEOUT:g} s; whether it was done is unknown"
                ) from None

    url = database_url(load_config(**flags))
    return asyncio.run(run())


def database_url(config: Config) -> str:
    """Give the address of the database: the one that is set, else that of `howdah dev` in this folder. Raises ConfigError."""
    if config.database_url is None:
        from howdah.devmode.record import find_session  # noqa: PLC0415  # only where nothing is set

        if (url := find_session(config.data_dir)) is not None:
            click.echo(
                "howdah: HOWDAH_DATABASE_URL is not set: using the database of howdah dev in this folder", err=True
            )
            return url
        raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs? Say postgresql://user@host/database")
    return config.database_url


@contextmanager
def on_embedded(config: Config) -> Iterator[Config]:
    """Run a PostgreSQL of our own, migrated, for the length of a `with`; gives the settings that lead to it."""
    # Only who asks for it needs what is below.
    from howdah.embedded import EmbeddedPostgres  # noqa: PLC0415
    from howdah.migrate import migrate  # noqa: PLC0415

    with EmbeddedPostgres(config.data_dir.resolve() / "postgres") as server:
        flags = {"database_url": server.url()}
        with_connection("migrate", flags, migrate)
        yield config.model_copy(update=flags)


def _place(url: str) -> str:
    """Give host and port of an address, never its password."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or "the local socket"


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing heard for {CONNECT_TIMEOUT:g} s"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused; is it running, and is HOWDAH_DATABASE_URL right?"
    return f"{error.strerror or error}; is HOWDAH_DATABASE_URL right?"
