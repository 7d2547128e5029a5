"""A group of commands that imports a command's module only when the command is called or described."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from howdah.cli.failures import failures

if TYPE_CHECKING:
    from collections.abc import Mapping


class LazyGroup(click.Group):
    """Finds the command `name` as the attribute `name` of its module; `add_command` works as it always does.

    `table` gives each command's module and its line of help, so that nothing is imported to list them. Every failure of any
    command ends here: one line, and the exit code that belongs to it.
    """

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give every name, in the order of the table, then what was added."""
        return [*self._table, *(name for name in super().list_commands(ctx) if name not in self._table)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give one command, importing its module."""
        if cmd_name in self._table and cmd_name not in self.commands:
            command: click.Command = getattr(importlib.import_module(self._table[cmd_name][0]), cmd_name)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        lines = [
            (name, self._table[name][1] if name in self._table else self.commands[name].get_short_help_str())
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(lines)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, and leave with its code."""
        options["standalone_mode"] = False  # click would tell failures in its own way
        with failures():
            code = super().main(*arguments, **options)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run one command; in here, because click writes an empty line for an interrupt that reaches it."""
        with failures():
            return super().invoke(ctx)
