"""What may go wrong, told in one line and by the exit code."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from howdah.cli.words import one_line
from howdah.errors import ConfigError, HandlersError, HowdahError, SchemaError
from howdah.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

FAILED, USAGE, CONFIGURATION, TIMED_OUT, INTERRUPTED, NOBODY_READS = 1, 2, 78, 124, 130, 141

NOT_MIGRATED = f"the database has no howdah schema, or one older than this howdah, {__version__}: run howdah migrate"
# SQLSTATEs: no such schema, table, function or column. Which of them says nothing about how old the schema is.
_NOT_MIGRATED = ("3F000", "42P01", "42883", "42703")
# Wrong user or password; no such database.
_WRONG_ADDRESS = ("28000", "28P01", "3D000")
_NOT_ALLOWED = "42501"


@contextmanager
def failures() -> Iterator[None]:
    """Turn every failure that a person can mend into one line and the right exit code; a bug keeps its traceback."""
    try:
        yield
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        leave_quietly()
    except click.UsageError as error:
        _refuse_usage(error)
    except click.ClickException as error:
        die(error.format_message(), FAILED)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        die(*told)


def die(problem: object, code: int = FAILED) -> NoReturn:
    """Say what was wrong, and leave."""
    click.echo(f"howdah: {one_line(str(problem))}", err=True)
    sys.exit(code)


def misuse(problem: str) -> NoReturn:
    """Refuse how a command was called; exit 2."""
    raise click.UsageError(problem, click.get_current_context(silent=True))


def leave_quietly() -> NoReturn:
    """Leave as a program does whose reader has gone (`| head`): without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has to go somewhere
    sys.exit(NOBODY_READS)


def _refuse_usage(error: click.UsageError) -> NoReturn:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
        sys.exit(USAGE)
    path = error.ctx.command_path if error.ctx is not None else "howdah"
    text = error.format_message().rstrip(".")
    if type(error) is click.BadParameter and error.param is not None and error.ctx is not None:
        hint = error.param.get_error_hint(error.ctx).strip("'[]")
        text = f"{hint}: {error.message.rstrip('.')}"
    die(f"{text} (see {path} --help)", USAGE)


def _told(error: Exception) -> tuple[str, int] | None:
    """Give what to say of an error and the exit code; None: it is nothing that we know."""
    if isinstance(error, (ConfigError, HandlersError, SchemaError)):
        return str(error), CONFIGURATION
    if isinstance(error, (HowdahError, OSError)):
        return str(error) or type(error).__name__, FAILED
    # Imported by whoever spoke to the database; the others are spared it.
    import asyncpg  # noqa: PLC0415

    if isinstance(error, asyncpg.PostgresError):
        return _told_by_server(error)
    return (str(error), FAILED) if isinstance(error, asyncpg.InterfaceError) else None


def _told_by_server(error: asyncpg.PostgresError) -> tuple[str, int]:
    state = error.sqlstate or ""
    text, hint = str(error.args[0] if error.args else error), getattr(error, "hint", None)
    if state in _WRONG_ADDRESS:
        return f"HOWDAH_DATABASE_URL: {text}", CONFIGURATION
    if state in _NOT_MIGRATED:
        return f"{NOT_MIGRATED} ({text})", CONFIGURATION
    if state == _NOT_ALLOWED:
        hint = hint or "the role of HOWDAH_DATABASE_URL may not do this"
    hint = hint or getattr(error, "detail", None)
    return f"{text.removeprefix('howdah: ')}{f' ({hint})' if hint else ''}", FAILED
