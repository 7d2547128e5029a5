"""What commands do before their work: settings, and one connection."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from howdah.config import Config, load_config
from howdah.database import connected
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import asyncpg

P = ParamSpec("P")
T = TypeVar("T")


def with_connection(
    name: str,
    flags: dict[str, Any],
    call: Callable[Concatenate[asyncpg.Connection, P], Coroutine[Any, Any, T]],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Run a coroutine function with a connection to the database that the settings name; gives what it gives."""

    async def run() -> T:
        async with connected(url, name=name) as connection:
            return await call(connection, *arguments, **options)

    url = database_url(load_config(**flags))
    return asyncio.run(run())


def database_url(config: Config) -> str:
    """Give the address of the database. Raises ConfigError if there is none."""
    if config.database_url is None:
        raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
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
