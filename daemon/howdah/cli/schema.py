"""Before and after a deploy: migrate, register, check."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import click

from howdah.cli.failures import FAILED
from howdah.cli.options import database_option, embedded_option, handlers_option
from howdah.cli.session import database_url, on_embedded, with_connection
from howdah.cli.words import one_line
from howdah.config import Config, load_config
from howdah.errors import SchemaError
from howdah.migrate import migrate as apply_migrations
from howdah.migrate import pending as pending_migrations
from howdah.queries import SQL
from howdah.registry import load
from howdah.script import migration_script

if TYPE_CHECKING:
    from howdah.registry import Registry


@click.command()
@database_option
@click.option(
    "--app",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Then the application's, from this folder.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if something is pending.")
@click.option("--no-roles", is_flag=True, help="Make no group roles: all is the owner's alone.")
@click.option("--sql", is_flag=True, help="Change nothing; print what psql would have to run.")
def migrate(*, app: Path | None, check: bool, no_roles: bool, sql: bool, **flags: Any) -> None:
    """Bring the database's schema up to date; safe when many start at once.

    \b
    howdah migrate
    howdah migrate --app sql/app
    howdah migrate --sql | psql -X -v ON_ERROR_STOP=1     # what is pending, or everything if no database is set
    """
    if sql:
        click.echo(_script(load_config(**flags), flags, app, roles=not no_roles), nl=False)
        return
    names = with_connection("migrate", flags, _migrate, app, check, not no_roles)
    for name in names:
        click.echo(name)
    if check and names:
        sys.exit(FAILED)
    if not names:
        click.echo("up to date")


@click.command()
@database_option
@handlers_option
def register(**flags: Any) -> None:
    """Tell the database of the handlers' kinds, without a daemon: at deploy time, so that enqueue knows them at once.

    \b
    howdah register
    howdah register --handlers shop.jobs,shop.mails
    """
    config = load_config(**flags)
    database_url(config)
    registry = load(config.handlers)
    for name in with_connection("register", flags, _register, registry):
        says = f"schedule {name} was made by hand, so the one that its handler declares is not used"
        click.echo(one_line(f"howdah: {says} (howdah schedule remove {name}, then howdah register)"), err=True)
    click.echo(f"registered {', '.join(registry.kinds)}")


@click.command()
@database_option
@handlers_option
@embedded_option
def check(*, embedded: bool, **flags: Any) -> None:
    """Check settings, handlers, database and schema, and say what is wrong; nothing is changed.

    With --embedded a fresh database of our own is made, migrated and checked. Exit 78 if anything is wrong.

    \b
    howdah check
    howdah check --handlers shop.jobs --embedded      # in CI: no database is needed
    """
    config = load_config(**flags)
    with on_embedded(config) if embedded else nullcontext(config) as config:
        names = with_connection("check", {"database_url": config.database_url}, pending_migrations)
        if names:
            raise SchemaError(f"pending migrations: {', '.join(names)}; run howdah migrate")
        click.echo(f"kinds: {', '.join(_known_kinds(config)) or 'none: no module handlers here'}")
    click.echo("ok")


async def _migrate(connection: asyncpg.Connection, app: Path | None, check: bool, roles: bool) -> list[str]:  # noqa: FBT001  # handed through as they are
    step = pending_migrations if check else partial(apply_migrations, roles=roles)
    names = await step(connection)
    if app is None:
        return names
    await connection.execute("reset search_path")  # the application's own SQL looks names up as its author does
    return names + await step(connection, source="app", folder=app)


def _script(config: Config, flags: dict[str, Any], app: Path | None, *, roles: bool) -> str:
    """Give the SQL of what is pending in the database that is set; of everything if there is none."""
    if config.database_url is None:
        return asyncio.run(migration_script(None, app=app, roles=roles))
    return with_connection("migrate", flags, partial(migration_script, app=app, roles=roles))


async def _register(connection: asyncpg.Connection, registry: Registry) -> list[str]:
    """Register kinds and schedules; gives the names of declared schedules that are not used."""
    try:
        row = await connection.fetchrow(SQL["register"], registry.registrations(), registry.revision())
    except asyncpg.InvalidSchemaNameError:
        raise SchemaError("the database has no howdah schema: run howdah migrate") from None
    return list(row["taken"]) if row is not None else []


def _known_kinds(config: Config) -> list[str]:
    """Give the handlers' kinds; none if no module was asked for and the default one is not there."""
    if (
        "handlers" not in config.model_fields_set
        and not Path("handlers").is_dir()
        and not Path("handlers.py").is_file()
    ):
        return []
    return load(config.handlers).kinds
