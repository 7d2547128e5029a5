"""The command `howdah`: arguments to settings to one call."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import asyncpg
import click
import orjson
import uvloop

from howdah import logs
from howdah.bench import bench
from howdah.config import Config, load_config
from howdah.database import Line, connected
from howdah.devmode.command import dev
from howdah.devmode.record import find_session
from howdah.embedded import EmbeddedPostgres
from howdah.errors import ConfigError, HandlersError, HowdahError, SchemaError
from howdah.migrate import migrate as apply_migrations
from howdah.migrate import pending as pending_migrations
from howdah.registry import load
from howdah.service import Limits, Service
from howdah.store import Store
from howdah.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")

FAILED, CONFIGURATION = 1, 78

database_option = click.option(
    "--database-url", metavar="URL", help="Where the jobs are [HOWDAH_DATABASE_URL, then DATABASE_URL]."
)
handlers_option = click.option(
    "--handlers", metavar="MODULES", help="Modules with handlers, by comma [HOWDAH_HANDLERS; handlers]."
)
embedded_option = click.option("--embedded", is_flag=True, help="Use a PostgreSQL of our own, in the data directory.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Background jobs for PostgreSQL."""


@main.command()
@database_option
@handlers_option
@embedded_option
@click.option("--queues", metavar="NAME:SLOTS,…", help="Queues and their slots [HOWDAH_QUEUES; default:100].")
@click.option("--concurrency", type=int, help="The most jobs running at once over all queues [HOWDAH_CONCURRENCY].")
@click.option("--http-host", help="Where the port listens [HOWDAH_HTTP_HOST; 127.0.0.1].")
@click.option("--http-port", type=int, help="Metrics and health; 0: any free port [HOWDAH_HTTP_PORT; 9543].")
@click.option("--drain-timeout", type=float, help="Seconds for running jobs after SIGTERM [HOWDAH_DRAIN_TIMEOUT; 25].")
@click.option(
    "--lease-ttl", type=float, help="Seconds without a beat until others take the jobs [HOWDAH_LEASE_TTL; 30]."
)
@click.option("--log-format", type=click.Choice(["json", "console"]), help="[HOWDAH_LOG_FORMAT; json]")
@click.option("--until-empty", is_flag=True, help="Leave when nothing is left to run.")
@click.option("--max-jobs", type=click.IntRange(min=1), help="Leave after so many attempts.")
@click.option("--max-seconds", type=click.FloatRange(min=0), help="Leave after so many seconds.")
def run(*, embedded: bool, until_empty: bool, max_jobs: int | None, max_seconds: float | None, **flags: Any) -> None:
    r"""Work: claim jobs and run their handlers, until SIGTERM.

    \b
    howdah run --queues default:100,mail:10
    howdah run --until-empty --max-seconds 50     # from cron; prints {"processed": …}, exit 1 if a job died
    """
    with _failures():
        config = load_config(**flags)
        logs.configure(style=config.log_format, level=config.log_level)
        with _embedded(config) if embedded else nullcontext(config) as config:
            registry = load(config.handlers)
            limits = Limits(until_empty=until_empty, max_jobs=max_jobs, max_seconds=max_seconds)
            report = _run(_serve, config, registry, limits, lambda: load_config(**flags))
    if until_empty or max_jobs or max_seconds:
        click.echo(orjson.dumps({"processed": report.processed, "dead": report.dead}).decode())
        sys.exit(FAILED if report.failed or report.dead else 0)
    sys.exit(FAILED if report.failed else 0)


@main.command()
@database_option
@click.option(
    "--app",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Then the application's, from this folder.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if something is pending.")
def migrate(*, app: Path | None, check: bool, **flags: Any) -> None:
    r"""Bring the database's schema up to date; safe when many start at once.

    \b
    howdah migrate
    howdah migrate --app sql/app
    """
    with _failures():
        config = load_config(**flags)
        names = _run(_migrate, _url(config), app, check)
    for name in names:
        click.echo(name)
    if check and names:
        sys.exit(FAILED)
    if not names:
        click.echo("up to date")


@main.command()
@database_option
@handlers_option
def register(**flags: Any) -> None:
    """Tell the database of the handlers' kinds, without a daemon: at deploy time, so that enqueue knows them at once."""
    with _failures():
        config = load_config(**flags)
        registry = load(config.handlers)
        _run(_register, _url(config), registry)
    click.echo(f"registered {', '.join(registry.kinds)}")


@main.command()
@database_option
@handlers_option
@embedded_option
def check(*, embedded: bool, **flags: Any) -> None:
    """Check settings, handlers, database and schema, and say what is wrong; nothing is changed.

    With --embedded a fresh database of our own is made, migrated and checked.
    """
    with _failures():
        config = load_config(**flags)
        with _embedded(config) if embedded else nullcontext(config) as config:
            names = _run(_check, _url(config))
            if names:
                raise SchemaError(f"pending migrations: {', '.join(names)}; run howdah migrate")
            click.echo(f"kinds: {', '.join(_known_kinds(config)) or 'none: no module handlers here'}")
    click.echo("ok")


@main.command()
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
    with _failures():
        config = load_config(**flags)
        row = _run(_enqueue, _url(config), [kind, payload, queue, priority, delay, unique_key, on_conflict, subject])
    click.echo(f"{row['id']}" if row["created"] else f"{row['id']} (it was there already)")


@main.command()
@click.option("--http-host", help="[HOWDAH_HTTP_HOST; 127.0.0.1]")
@click.option("--http-port", type=int, help="[HOWDAH_HTTP_PORT; 9543]")
@click.option("--ready", is_flag=True, help="Ask whether it is ready rather than whether it is alive.")
def healthcheck(*, ready: bool, **flags: Any) -> None:
    """Ask a running worker whether it is well; exit 1 if not. For a container's HEALTHCHECK."""
    with _failures():
        config = load_config(**flags)
        ok, answer = _run(_ask_health, config, "/readyz" if ready else "/healthz")
    click.echo(answer)
    sys.exit(0 if ok else FAILED)


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


main.add_command(bench)
main.add_command(dev)


async def _serve(config: Config, registry: Any, limits: Limits, reread: Callable[[], Config]) -> Any:
    return await Service(config, registry, limits=limits, reread=reread).run()


async def _migrate(url: str, app: Path | None, check: bool) -> list[str]:  # noqa: FBT001  # handed through as it is
    step = pending_migrations if check else apply_migrations
    async with connected(url, name="migrate") as connection:
        names = await step(connection)
        return names + (await step(connection, source="app", folder=app) if app is not None else [])


async def _register(url: str, registry: Any) -> None:
    line = Line("register", url)
    try:
        await Store(line).register(registry.registrations(), registry.revision())
    except asyncpg.InvalidSchemaNameError:
        raise SchemaError("the database has no howdah schema: run howdah migrate") from None
    finally:
        await line.close()


async def _check(url: str) -> list[str]:
    async with connected(url, name="check") as connection:
        return await pending_migrations(connection)


async def _enqueue(url: str, arguments: list[Any]) -> asyncpg.Record:
    async with connected(url, name="enqueue") as connection:
        row = await connection.fetchrow(
            "select * from howdah.enqueue($1, $2::text::jsonb, queue => $3, priority => $4, delay => $5::text::interval,"
            " unique_key => $6, on_conflict => $7, subject => $8)",
            *arguments,
        )
    if row is None:
        raise HowdahError("enqueue gave no row")
    return row


async def _ask_health(config: Config, path: str) -> tuple[bool, str]:
    import aiohttp  # noqa: PLC0415  # only this command needs a client

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session,
            session.get(f"http://{config.http_host}:{config.http_port}{path}") as response,
        ):
            return response.status == 200, await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return False, f"no answer from {config.http_host}:{config.http_port}: {error}"


@contextmanager
def _embedded(config: Config) -> Iterator[Config]:
    """Run a PostgreSQL of our own, migrated, for the length of a `with`; gives the settings that lead to it."""
    with EmbeddedPostgres(config.data_dir.resolve() / "postgres") as server:
        url = server.url()
        _run(_migrate, url, None, False)
        yield config.model_copy(update={"database_url": url})


def _known_kinds(config: Config) -> list[str]:
    """Give the handlers' kinds; none if no module was asked for and the default one is not there."""
    if (
        "handlers" not in config.model_fields_set
        and not Path("handlers").is_dir()
        and not Path("handlers.py").is_file()
    ):
        return []
    return load(config.handlers).kinds


def _url(config: Config) -> str:
    if config.database_url is None:
        if (url := find_session(config.data_dir)) is not None:
            click.echo(
                "howdah: HOWDAH_DATABASE_URL is not set: using the database of howdah dev in this folder", err=True
            )
            return url
        raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
    return config.database_url


def _run(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    return uvloop.run(call(*arguments))


@contextmanager
def _failures() -> Iterator[None]:
    """Turn every failure that a person can mend into one line and the right exit code."""
    try:
        yield
    except (ConfigError, HandlersError, SchemaError) as error:
        _die(error, CONFIGURATION)
    except asyncpg.InvalidPasswordError as error:
        _die(f"HOWDAH_DATABASE_URL: {error}", CONFIGURATION)
    except asyncpg.InvalidCatalogNameError as error:
        _die(f"HOWDAH_DATABASE_URL: {error}", CONFIGURATION)
    except asyncpg.PostgresError as error:
        _die(f"{error}{f' ({error.hint})' if getattr(error, 'hint', None) else ''}", FAILED)
    except (HowdahError, OSError) as error:
        _die(error, FAILED)


def _die(problem: object, code: int) -> NoReturn:
    click.echo(f"howdah: {problem}", err=True)
    sys.exit(code)
