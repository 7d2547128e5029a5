"""Facts as words for a terminal: times, durations, and text that cannot drive it."""

from __future__ import annotations

import getpass
import re
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# C0, DEL and C1, what turns the writing direction, line and paragraph separators, and half characters.
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def safe(text: str, *, keep: str = "") -> str:
    r"""Give a text with everything that a terminal would obey written out, such as \x1b; `keep` names what may stay."""
    return _HOSTILE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def one_line(text: str) -> str:
    """Give a text on one line, and safe."""
    return safe(" ".join(text.split()))


def ago(moment: datetime | None, now: datetime) -> str:
    """Say how long ago a moment was, or in how long it comes."""
    if moment is None:
        return ""
    if moment.year in {1, 9999}:  # what asyncpg makes of ±infinity
        return "never"
    seconds = (now - moment).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def duration(seconds: float | timedelta | None) -> str:
    """Say how long something took, in its largest unit: 12 ms, 3.1 s, 5 min, 2 h, 4 d."""
    if seconds is None:
        return ""
    seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms"


def clock(moment: datetime | None) -> str:
    """Say a moment in the terminal's own time zone."""
    if moment is None:
        return ""
    return "never" if moment.year in {1, 9999} else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def counted(number: int, noun: str) -> str:
    """Say a number of things: 1 job, 1,204 jobs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Say some names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def now() -> datetime:
    """Give the time where this runs."""
    return datetime.now(UTC)


def somebody() -> str:
    """Give who runs this: user@host."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container without a name for its user
        return f"somebody@{socket.gethostname()}"


def _escaped(character: str) -> str:
    number = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
    )
