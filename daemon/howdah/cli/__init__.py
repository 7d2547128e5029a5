"""The command `howdah`: its commands by name, each loaded when it is called."""

from __future__ import annotations

import click

from howdah.cli.group import LazyGroup

#: Command → the module that holds it. A command of a new module needs one line here.
COMMANDS = {
    "run": "howdah.cli.running",
    "healthcheck": "howdah.cli.health",
    "migrate": "howdah.cli.schema",
    "register": "howdah.cli.schema",
    "check": "howdah.cli.schema",
    "enqueue": "howdah.cli.enqueueing",
    "bench": "howdah.bench",
    "version": "howdah.cli.health",
}


@click.group(
    cls=LazyGroup,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
def main() -> None:
    """Background jobs for PostgreSQL."""
