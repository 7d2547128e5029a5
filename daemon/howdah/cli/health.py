"""What a container or a supervisor asks of a worker: healthcheck."""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException

import click

from howdah.cli.failures import FAILED

PATIENCE = 3.0
#: Config's defaults.
HTTP_HOST, HTTP_PORT = "127.0.0.1", 9543


@click.command()
@click.option("--http-host", help="Where it listens [HOWDAH_HTTP_HOST; 127.0.0.1].")
@click.option("--http-port", type=click.IntRange(1, 65535), help="Its port [HOWDAH_HTTP_PORT; 9543].")
@click.option("--ready", is_flag=True, help="Ask whether it is ready rather than whether it is alive.")
def healthcheck(*, ready: bool, http_host: str | None, http_port: int | None) -> None:
    """Ask a running worker whether it is well; exit 1 if not. For a container's HEALTHCHECK.

    \b
    howdah healthcheck
    howdah healthcheck --ready --http-port 9544
    """
    ok, answer = _ask(*address(http_host, http_port), "/readyz" if ready else "/healthz")
    click.echo(answer)
    sys.exit(0 if ok else FAILED)


def address(http_host: str | None, http_port: int | None) -> tuple[str, int]:
    """Give where the worker listens: by flag, variable, file or default, as Config would.

    Without a file to read, Config is not asked: this command runs every few seconds, and importing that takes three times as
    long as all the rest.
    """
    variables = [os.environ.get(name) for name in ("HOWDAH_HTTP_HOST", "HOWDAH_HTTP_PORT")]
    if "HOWDAH_CONFIG" in os.environ or not (variables[1] or "0").isdecimal():
        from howdah.config import load_config  # noqa: PLC0415

        config = load_config(http_host=http_host, http_port=http_port)
        return config.http_host, config.http_port
    return http_host or variables[0] or HTTP_HOST, http_port or int(variables[1] or HTTP_PORT)


def _ask(host: str, port: int, path: str) -> tuple[bool, str]:
    # Not aiohttp, for the same reason.
    line = HTTPConnection(host, port, timeout=PATIENCE)
    try:
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status == 200, answer.read().decode("utf-8", "replace")
    except (OSError, HTTPException) as error:
        return False, f"no answer from {host}:{port}: {error}"
    finally:
        line.close()
