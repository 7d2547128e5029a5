"""Where a session is seen: a live picture in a terminal, lines anywhere else."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.live import Live

from howdah.devmode.view import about, enqueue_lines, render, took

if TYPE_CHECKING:
    from howdah.devmode.facts import Row
    from howdah.devmode.view import Session


class Screen(Protocol):
    """What a session tells."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Tell an event of the session."""

    def show(self, session: Session, logged: list[str], ended: list[Row]) -> None:
        """Tell what is now, what was logged and what has ended since the last call."""


class Picture:
    """A live picture in the terminal's other screen; the terminal is as it was when it leaves."""

    def __init__(self) -> None:
        self._console = Console()
        self._drawn: tuple[object, ...] = ()
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self._live.stop()

    def say(self, text: str) -> None:
        """Say nothing: the picture has it."""

    def show(self, session: Session, logged: list[str], ended: list[Row]) -> None:
        """Draw, if there is anything new: a session that idles costs nothing."""
        width, height = self._console.size
        facts = session.facts
        now = (
            width,
            height,
            session.phase,
            session.problem,
            facts.away,
            facts.queues,
            facts.live,
            facts.kinds,
            len(facts.ended),
        )
        if now == self._drawn and not logged and not ended:
            return
        self._drawn = now
        with suppress(OSError):
            self._live.update(render(session, width, height), refresh=True)


class Lines:
    """Plain lines, for pipes and CI."""

    def __init__(self) -> None:
        self._known: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Write an event of the session."""
        self._write(f"dev: {text}")

    def show(self, session: Session, logged: list[str], ended: list[Row]) -> None:
        """Write what is new."""
        for line in logged:
            self._write(line)
        for row in ended:
            time = took(row)
            self._write(
                f"dev: {row['kind']} {row['id']} {row['state']}{f' in {time}' if time else ''} {about(row)}".rstrip()
            )
        if (commands := enqueue_lines(session.facts)) != self._known:
            self._known = commands
            for command in commands:
                self._write(f"dev: to enqueue: {command}")

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def open_screen() -> Screen:
    """Choose by what standard output is."""
    console = Console()
    return Picture() if console.is_terminal and not console.is_dumb_terminal else Lines()
