"""The command `howdah dev`: what was asked for, checked, to one session."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--database-url", metavar="URL", help="Use this database, not one of our own; it is migrated.")
@click.option(
    "--url", "tell_url", is_flag=True, help="Print the address of the database of the session in this folder."
)
def dev(*, file: Path | None, database_url: str | None, tell_url: bool) -> None:
    """Run a file of handlers on a database of its own, and again whenever it is saved.

    \b
    howdah dev jobs.py
    howdah enqueue hello '{"name": "you"}'     # in another terminal, in the same folder
    psql "$(howdah dev --url)"
    """
    # Imported here: every other command would wait for it.
    from howdah.errors import ConfigError, HowdahError  # noqa: PLC0415

    try:
        _run(file, database_url, tell_url=tell_url)
    except ConfigError as error:
        click.echo(f"howdah: {error}", err=True)
        sys.exit(78)
    except (HowdahError, OSError) as error:
        click.echo(f"howdah: {error}", err=True)
        sys.exit(1)


def _run(file: Path | None, database_url: str | None, *, tell_url: bool) -> None:
    from howdah.config import load_config  # noqa: PLC0415
    from howdah.devmode.record import find_session  # noqa: PLC0415
    from howdah.errors import HowdahError  # noqa: PLC0415

    # What is set for other commands must not lead here: a session migrates its database and runs its jobs.
    config = load_config(database_url=database_url or "postgresql://unused")
    data_dir = config.data_dir.absolute()
    if tell_url:
        if (url := find_session(data_dir)) is None:
            raise HowdahError(f"no howdah dev is running for {data_dir}")
        click.echo(url)
        return
    if file is None:
        raise click.UsageError("which file of handlers? Such as: howdah dev jobs.py")
    if file.suffix != ".py" or "," in str(file.absolute()):
        raise click.UsageError(f"{file} must end in .py, and its path have no comma")
    try:
        from howdah.devmode.session import Session  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise HowdahError(f"howdah dev needs {error.name}: run `pip install 'howdah[embedded]'`") from None
    Session(file.absolute(), data_dir, config.database_url if database_url is not None else None).run()
