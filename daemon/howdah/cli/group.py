"""A group of commands that imports a command's module only when the command is called or described."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from howdah.cli.failures import failures

if TYPE_CHECKING:
    from collections.abc import Mapping


class LazyGroup(click.Group):
    """Finds the command `name` as the attribute `name` of its module; `add_command` works as it always does.

    Every failure of any command ends here: one line, and the exit code that belongs to it.
    """

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give every name, in the order of the table, then what was added."""
        return [*self._modules, *(name for name in super().list_commands(ctx) if name not in self._modules)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give one command, importing its module."""
        if cmd_name in self._modules and cmd_name not in self.commands:
            command: click.Command = getattr(importlib.import_module(self._modules[cmd_name]), cmd_name)
            self.add_command(command)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with failures():
            return super().invoke(ctx)
