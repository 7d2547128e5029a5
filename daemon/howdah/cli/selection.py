"""Which jobs a command means: the options for it, and the question before many are touched."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from howdah.cli.failures import misuse
from howdah.cli.options import moment_or_ago
from howdah.cli.words import counted
from howdah.inspection import ENDED_STATES, LIVE_STATES, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    F = TypeVar("F", bound=Callable[..., Any])

_FILTERS = (
    click.option("--queue", metavar="NAME", help="Of this queue."),
    click.option("--kind", metavar="NAME", help="Of this kind."),
    click.option("--subject", metavar="TEXT", help="About this subject."),
    click.option(
        "--since",
        type=moment_or_ago,
        metavar="TIME",
        help="Touched since: '2 hours' (ago), '30m', or a time such as 2026-01-31T09:00. An ended job was last touched at its end.",
    ),
    click.option("--until", type=moment_or_ago, metavar="TIME", help="Touched before; as --since."),
    click.option(
        "--error",
        metavar="TEXT",
        help="Failed with this: a part of the message, the exception's type, or a fingerprint of --group-by error.",
    ),
)


def filters(function: F) -> F:
    """Add the options that say which jobs."""
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def states(*names: str, default: Sequence[str] = ()) -> Callable[[F], F]:
    """Add --state, and an option for each state."""

    def add(function: F) -> F:
        for name in reversed(names):
            function = click.option(f"--{name}", name, is_flag=True, hidden=name != "dead", help="--state dead.")(
                function
            )
        said = f" [default: {', '.join(default)}]" if default else ""
        return click.option(
            "--state",
            "state",
            multiple=True,
            type=click.Choice(names),
            help=f"In this state; more than once: any of them.{said}",
        )(function)

    return add


def wanted(options: dict[str, Any], *, default: Sequence[str] = ()) -> Wanted:
    """Make of a command's options which jobs it means; takes them out of `options`."""
    flags = [name for name in (*LIVE_STATES, *ENDED_STATES) if options.pop(name, False)]
    chosen = dict.fromkeys((*options.pop("state", ()), *flags)) or dict.fromkeys(default)
    facts = {name: options.pop(name) for name in ("queue", "kind", "subject", "since", "until", "error")}
    return Wanted(tuple(chosen), **facts)


def said_something(options: dict[str, Any]) -> bool:
    """Tell whether any option says which jobs."""
    names = ("state", "queue", "kind", "subject", "since", "until", "error", *LIVE_STATES, *ENDED_STATES)
    return any(options.get(name) for name in names)


def need_selection(ids: Sequence[int], options: dict[str, Any]) -> None:
    """Refuse a command that means no jobs, or means them twice."""
    if bool(ids) == said_something(options):
        misuse("name jobs or use filters, not both" if ids else "which jobs? Name them, or use a filter such as --kind")


def need_consent(*, yes: bool) -> None:
    """Refuse at once where nobody could answer the question."""
    if not yes and not sys.stdin.isatty():
        misuse("nobody can be asked here: add --yes, or look first with --dry-run")


def consent(verb: str, number: int, *, yes: bool) -> bool:
    """Ask before many jobs are touched."""
    return yes or click.confirm(f"{verb} {counted(number, 'job')}?", err=True)
