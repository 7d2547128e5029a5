"""What an examination found: one line each, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: `unseen`: this login, or this place, does not show it. It is said, and fails nothing.
Level = Literal["ok", "unseen", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: how bad, of what, what was found, and what to do (empty when there is nothing to do)."""

    level: Level
    topic: str
    says: str
    do: str = ""


def ok(topic: str, says: str) -> Finding:
    """Make a line about what is well."""
    return Finding("ok", topic, says)


def unseen(topic: str, says: str, do: str = "") -> Finding:
    """Make a line about what could not be looked at."""
    return Finding("unseen", topic, says, do)


def warn(topic: str, says: str, do: str) -> Finding:
    """Make a line about what will hurt."""
    return Finding("warn", topic, says, do)


def fail(topic: str, says: str, do: str) -> Finding:
    """Make a line about what hurts now."""
    return Finding("fail", topic, says, do)


def several(count: int, thing: str) -> str:
    """Tell how many of a thing: 1 job, 2 jobs."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """Tell a length of time to people: 850 ms, 12 s, 3 min, 5 h, 2 days."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
