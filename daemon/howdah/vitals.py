"""What the two threads know of one another: each attribute has one writer, and reading it needs no lock."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

#: How often the main loop shows its pulse, in seconds, and for how many of them their lateness is remembered.
PULSE, PULSES = 0.5, 30
#: A job counts as stuck so many seconds past its worker's ttl, or past its own timeout.
SWEEP, GRACE = 10.0, 30.0


@dataclass(slots=True)
class Vitals:
    """The signs of life of one worker. Times are of `time.monotonic()`."""

    #: Written by the main loop.
    pulse: float = field(default_factory=time.monotonic)
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=PULSES))
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

    def loop_lag(self) -> float:
        """Seconds by which the main loop's pulse was late at the worst of late, or is late now."""
        return max(*self.lags.copy(), self.pulse_age() - PULSE, 0.0)
