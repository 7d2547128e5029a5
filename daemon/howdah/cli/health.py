"""What a container or a supervisor asks: healthcheck, version."""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import click

from howdah.cli.failures import FAILED
from howdah.config import load_config
from howdah.version import __version__

if TYPE_CHECKING:
    from howdah.config import Config

PATIENCE = 3.0


@click.command()
@click.option("--http-host", help="Where it listens [HOWDAH_HTTP_HOST; 127.0.0.1].")
@click.option("--http-port", type=int, help="Its port [HOWDAH_HTTP_PORT; 9543].")
@click.option("--ready", is_flag=True, help="Ask whether it is ready rather than whether it is alive.")
def healthcheck(*, ready: bool, **flags: Any) -> None:
    """Ask a running worker whether it is well; exit 1 if not. For a container's HEALTHCHECK.

    \b
    howdah healthcheck
    howdah healthcheck --ready --http-port 9544
    """
    ok, answer = _ask(load_config(**flags), "/readyz" if ready else "/healthz")
    click.echo(answer)
    sys.exit(0 if ok else FAILED)


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


def _ask(config: Config, path: str) -> tuple[bool, str]:
    # Not aiohttp: this runs every few seconds, and importing that takes longer than everything else here.
    line = HTTPConnection(config.http_host, config.http_port, timeout=PATIENCE)
    try:
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status == 200, answer.read().decode("utf-8", "replace")
    except (OSError, HTTPException) as error:
        return False, f"no answer from {config.http_host}:{config.http_port}: {error}"
    finally:
        line.close()
