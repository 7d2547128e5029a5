"""The daemon itself: run."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import click
import orjson
import uvloop

from howdah import logs
from howdah.cli.failures import FAILED
from howdah.cli.options import database_option, embedded_option, handlers_option
from howdah.cli.session import on_embedded
from howdah.config import load_config
from howdah.registry import load
from howdah.service import Limits, Service


@click.command()
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
@click.option(
    "--log-format", type=click.Choice(["json", "console"]), help="How log lines look [HOWDAH_LOG_FORMAT; json]."
)
@click.option("--until-empty", is_flag=True, help="Leave when nothing is left to run.")
@click.option("--max-jobs", type=click.IntRange(min=1), help="Leave after so many attempts.")
@click.option("--max-seconds", type=click.FloatRange(min=0), help="Leave after so many seconds.")
def run(*, embedded: bool, until_empty: bool, max_jobs: int | None, max_seconds: float | None, **flags: Any) -> None:
    """Work: claim jobs and run their handlers, until SIGTERM.

    Other settings are variables or lines of the TOML file that HOWDAH_CONFIG names: HOWDAH_POLL_INTERVAL (1),
    HOWDAH_POOL_SIZE (10), HOWDAH_HISTORY_DAYS (14), HOWDAH_HANG_TIMEOUT (300), HOWDAH_LISTEN_DATABASE_URL, HOWDAH_ADMIN_TOKEN,
    HOWDAH_POOL_DATABASE_URL (a login for the handlers alone), HOWDAH_LOG_LEVEL (info), HOWDAH_DATA_DIR (.howdah). A database that is away is waited for.

    \b
    TERM, INT drain; again, or QUIT: leave now     TSTP stops claiming, CONT goes on
    HUP reads the file again                       TTIN logs every task's stack
    Exit codes: 0 clean, 1 failed (or a job died, with a limit below), 75 hung and forced, 78 configuration or schema.

    \b
    howdah run --queues default:100,mail:10
    howdah run --until-empty --max-seconds 50     # from cron; prints {"processed": …}, exit 1 if a job died
    """
    config = load_config(**flags)
    logs.configure(style=config.log_format, level=config.log_level)
    with on_embedded(config) if embedded else nullcontext(config) as config:
        registry = load(config.handlers)
        limits = Limits(until_empty=until_empty, max_jobs=max_jobs, max_seconds=max_seconds)
        report = uvloop.run(Service(config, registry, limits=limits, reread=lambda: load_config(**flags)).run())
    if until_empty or max_jobs or max_seconds:
        click.echo(orjson.dumps({"processed": report.processed, "dead": report.dead}).decode())
        sys.exit(FAILED if report.failed or report.dead else 0)
    sys.exit(FAILED if report.failed else 0)
