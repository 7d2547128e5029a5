"""What may go wrong, told in one line and by the exit code."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import asyncpg
import click

from howdah.errors import ConfigError, HandlersError, HowdahError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED, CONFIGURATION = 1, 78


@contextmanager
def failures() -> Iterator[None]:
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
