"""Options that several commands take."""

from __future__ import annotations

import click

database_option = click.option(
    "--database-url", metavar="URL", help="Where the jobs are [HOWDAH_DATABASE_URL, then DATABASE_URL]."
)
handlers_option = click.option(
    "--handlers", metavar="MODULES", help="Modules with handlers, by comma [HOWDAH_HANDLERS; handlers]."
)
embedded_option = click.option("--embedded", is_flag=True, help="Use a PostgreSQL of our own, in the data directory.")
