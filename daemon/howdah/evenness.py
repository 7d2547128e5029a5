"""Whether the database's clock has run as evenly as this machine's: after a step of it nobody's beat says anything for a while."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

#: What two clocks may differ by between two looks, in seconds, beside the time that a look takes: less than a third of any ttl.
TOLERANCE = 0.3


class Evenness:
    """Compares looks at the database's clock with this machine's monotonic one, which nobody can set."""

    def __init__(self) -> None:
        self._clock: datetime | None = None
        self._sent = self._received = 0.0
        self._since = monotonic()

    def expected(self) -> datetime | None:
        """Give what the database's clock shows now if it has not been set; None before the first look."""
        return None if self._clock is None else self._clock + timedelta(seconds=monotonic() - self._received)

    def seconds(self) -> float:
        """Give for how long it has run evenly, as far as anybody has looked."""
        return 0.0 if self._clock is None else monotonic() - self._since

    def note(self, clock: datetime, *, sent: float, received: float) -> float:
        """Note a look that was sent and received at these moments; gives the seconds by which the clock was set, 0 for none."""
        step = 0.0
        if self._clock is None:
            self._since = received
        else:
            gone = (clock - self._clock).total_seconds()
            least, most = sent - self._received - TOLERANCE, received - self._sent + TOLERANCE
            if not least <= gone <= most:
                self._since = received
                step = gone - (received - self._received)
        self._clock, self._sent, self._received = clock, sent, received
        return step
