"""`howdah doctor`: the examination on the screen, or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import orjson
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from howdah.config import load_config
from howdah.doctor.examine import examine
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from howdah.config import Config
    from howdah.doctor.finding import Finding

MARKS = {"ok": "[green]ok[/]", "unseen": "[dim]unseen[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


@click.command()
@click.option("--database-url", metavar="URL", help="Where the jobs are [HOWDAH_DATABASE_URL, then DATABASE_URL].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {ok, findings: [{level, topic, says, do}]}.")
def doctor(*, as_json: bool, **flags: Any) -> None:
    """Look at everything that is known to go wrong, and say what to do; exit 1 if something hurts now.

    Changes nothing, and any login may ask: what it may not see is said so.

    \b
    howdah doctor
    howdah doctor --json | jq '.findings[] | select(.level == "fail")'
    """
    try:
        config = load_config(**flags)
        url = database_url(config)
    except ConfigError as error:
        click.echo(f"howdah: {error}", err=True)
        sys.exit(78)
    findings = uvloop.run(_all(config, url))
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        lines = [{"level": one.level, "topic": one.topic, "says": one.says, "do": one.do} for one in findings]
        click.echo(orjson.dumps({"ok": not failed, "findings": lines}).decode())
    else:
        _show(findings)
    sys.exit(1 if failed else 0)


def database_url(config: Config) -> str:
    """Give where the jobs are. Raises ConfigError."""
    if config.database_url is None:
        raise ConfigError("HOWDAH_DATABASE_URL", "is not set: where are the jobs?")
    return config.database_url


async def _all(config: Config, url: str) -> list[Finding]:
    return [finding async for finding in examine(config, url)]


def _show(findings: list[Finding]) -> None:
    """Print a line for each, what to do below it; nothing is cut off, also where the screen is narrow."""
    console = Console(highlight=False)
    if not console.is_terminal:  # for a pipe a line is a line, however long
        for one in findings:
            click.echo(_plain(f"{one.level:<6} {one.topic:<13} {one.says}{f' → {one.do}' if one.do else ''}"))
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        says = escape(_plain(one.says))
        if one.do:
            says += f"\n[cyan]→ {escape(_plain(one.do))}[/]"
        table.add_row(MARKS[one.level], one.topic, says)
    console.print(table)


def _plain(text: str) -> str:
    """Take out what a terminal would obey: names of jobs, queues and sessions are other people's."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
