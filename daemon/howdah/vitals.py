"""What the two threads know of one another: each attribute has one writer, and reading it needs no lock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Vitals:
    """The signs of life of one worker. Times are of `time.monotonic()`."""

    #: Written by the main loop.
    pulse: float = field(default_factory=time.monotonic)
    draining: bool = False
    working: bool = False
    worker: int = 0
    #: The moment at which the process must be gone, whatever its handlers do.
    leave_by: float | None = None
    #: The moment from which a main loop that stands still is not waited for any more: it should be cancelling handlers.
    turn_by: float | None = None
    #: Written by the lifeline.
    last_beat: float = field(default_factory=time.monotonic)
    listening: bool = False
    leads: bool = False

    def beat_age(self) -> float:
        """Seconds since the last beat that the database took."""
        return time.monotonic() - self.last_beat

    def pulse_age(self) -> float:
        """Seconds since the main loop last turned."""
        return time.monotonic() - self.pulse
