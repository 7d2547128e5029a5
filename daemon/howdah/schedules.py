"""When a schedule's slots are: a cron expression and a time zone to moments, pure.

Slots are a pure function of expression, zone and the moment that they are counted from; which worker computes them, and when, changes
nothing. The expression is read by cronsim and means what Debian's cron makes of it:

- At fixed times (neither the minute nor the hour begins with a star, five fields) the clock on the wall rules: a time that the
  clocks jump over comes when they have jumped, one that comes twice counts the first time.
- Otherwise every real moment counts that reads right on the wall: none of a skipped hour, those of a doubled one twice.

cronsim's own iteration loses slots where the clocks move by half an hour, hence the walk over the days here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Literal, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from howdah.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Missed = Literal["skip", "one", "all"]
Overlap = Literal["allow", "skip"]

#: A slot that is seen so much later was missed.
GRACE = timedelta(seconds=60)
#: The most slots that are made up for at once.
MOST = 1000
#: If nothing comes in so many years, nothing ever will: the calendar repeats itself in 28, or 40 over a century.
YEARS = 50

_DAY, _HOUR, _MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a kind's jobs are made by themselves, for `@handler(…, schedule=…)`; see docs/handlers.md."""

    cron: str
    payload: Any = field(default_factory=dict)  # a mapping or a model
    time_zone: str = "UTC"
    missed: Missed = "one"
    overlap: Overlap = "allow"
    jitter: float = 0.0  # seconds

    def check(self) -> None:
        """Raise ScheduleError if nobody could follow this."""
        Timetable(self.cron, self.time_zone)
        for name, value, words in (
            ("missed", self.missed, get_args(Missed)),
            ("overlap", self.overlap, get_args(Overlap)),
        ):
            if value not in words:
                raise ScheduleError(f"{name} is {value!r}: say {', '.join(words[:-1])} or {words[-1]}")
        if not 0 <= self.jitter <= _DAY.total_seconds():
            raise ScheduleError(f"jitter is {self.jitter!r}: say seconds, at most a day")


class Timetable:
    """All slots of a cron expression in a time zone. Raises ScheduleError for what is none."""

    def __init__(self, cron: str, time_zone: str = "UTC") -> None:
        self.zone = read_zone(time_zone)
        try:
            self._cron = CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
        except (CronSimError, ValueError, AttributeError, AssertionError) as error:
            raise ScheduleError(f"{cron!r} is no cron expression: {_say(error)}; {FIELDS}") from None
        parts = cron.split()
        # The rule of Debian's cron, as cronsim reads it.
        self._on_the_wall = len(parts) == 5 and not parts[0].startswith("*") and not parts[1].startswith("*")
        self._hours = [timedelta(hours=hour) for hour in sorted(self._cron.hours)]
        self._minutes = [timedelta(minutes=minute) for minute in sorted(self._cron.minutes)]
        self._seconds = [timedelta(seconds=second) for second in sorted(self._cron.seconds)]

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Give the slots after a moment, in UTC, each once and in order; ends when none comes within fifty years."""
        last = moment.astimezone(UTC)
        # A time that was jumped over belongs to a day before the one that it comes on.
        day = moment.astimezone(self.zone).date() - _DAY
        while (found := self._day_from(day)) is not None:
            for slot in self._slots_of(found, last):
                if slot > last:
                    last = slot
                    yield slot
            day = found + _DAY

    def first_after(self, moment: datetime) -> datetime:
        """Give the first slot after a moment. Raises ScheduleError if there is none."""
        slot = next(self.after(moment), None)
        if slot is None:
            raise ScheduleError(f"no time within {YEARS} years fits the expression")
        return slot

    def latest(self, after: datetime, until: datetime, count: int) -> list[datetime]:
        """Give the last `count` slots after one moment and up to another, in order, however far these are apart."""
        window = timedelta(hours=1)
        while True:
            since = max(after, until - window) if until - after > window else after
            found = list(takewhile(lambda slot: slot <= until, self.after(since)))
            if len(found) >= count or since == after:
                return found[-count:]
            window *= 8

    def preview(self, moment: datetime, count: int = 5) -> list[datetime]:
        """Give the next few slots after a moment, in the schedule's own zone."""
        return [slot.astimezone(self.zone) for slot in islice(self.after(moment), count)]

    def _day_from(self, day: date) -> date | None:
        """Give the first day from this one on that the expression means."""
        last_year = min(day.year + YEARS, 9998)
        while day.year <= last_year:
            if day.month not in self._cron.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            elif self._cron.match_day(day):
                return day
            else:
                day += _DAY
        return None

    def _slots_of(self, day: date, past: datetime) -> Iterator[datetime]:
        """Give a day's slots in order; those up to `past` may be left out."""
        begin, end = (datetime.combine(on, time(), tzinfo=self.zone) for on in (day, day + _DAY))
        minutes: Iterable[datetime]
        if begin.utcoffset() == end.utcoffset():
            # No clock is moved on this day, so what is written on the wall is the order of time.
            start = begin.astimezone(UTC)
            minutes = (start + wall for wall in self._walls(past - start))
        else:
            midnight = datetime.combine(day, time())
            minutes = sorted({moment for wall in self._walls() for moment in self._moments(midnight + wall)})
        for minute in minutes:
            for second in self._seconds:
                yield minute + second

    def _walls(self, past: timedelta = timedelta()) -> Iterator[timedelta]:
        """Give the hours and minutes of a day, without most of those up to `past`."""
        for hour in self._hours:
            if hour + _HOUR > past:
                yield from (hour + minute for minute in self._minutes if hour + minute + _MINUTE > past)

    def _moments(self, wall: datetime) -> list[datetime]:
        """Give the moments at which the clock on the wall reads so: one, or on the days when it is moved none or two."""
        first, second = (wall.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        if not _imaginary(first):
            again = second.utcoffset() != first.utcoffset() and not self._on_the_wall
            return [moment.astimezone(UTC) for moment in ((first, second) if again else (first,))]
        if not self._on_the_wall:
            return []
        while _imaginary(first):
            wall += _MINUTE
            first = wall.replace(tzinfo=self.zone)
        return [first.astimezone(UTC)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for a schedule at a moment: make jobs for `slots`, then look again at `next_at`.

    `late` slots were missed, as far as they were counted, which is to MOST; `missed` of them get no job. `until` is the last slot
    that is dealt with by this.
    """

    slots: list[datetime]
    late: int
    missed: int
    until: datetime
    next_at: datetime


def plan(timetable: Timetable, missed: str, done_until: datetime, now: datetime) -> Plan:
    """Decide about every slot after `done_until` that has come by now. Raises ScheduleError if there is no slot after them."""
    on_time_from = max(done_until, now - GRACE)
    on_time = list(takewhile(lambda slot: slot <= now, timetable.after(on_time_from)))
    late = timetable.latest(done_until, on_time_from, MOST) if on_time_from > done_until else []
    kept = late if missed == "all" else late[-1:] if missed == "one" else []
    slots = kept + on_time
    until = (late + on_time)[-1] if late or on_time else done_until
    return Plan(slots, len(late), len(late) - len(kept), until, timetable.first_after(until))


def delay_of(name: str, slot: datetime, jitter: float) -> float:
    """Give a slot's delay within the jitter, in seconds: always the same for one slot, whoever asks."""
    return round(random.Random(f"{name} {slot.timestamp()}").uniform(0, jitter), 3) if jitter else 0.0  # noqa: S311  # no secret


def read_zone(name: str) -> ZoneInfo:
    """Give a time zone by name. Raises ScheduleError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):  # not there, not a name, a folder, not text
        raise ScheduleError(f"{name!r} is no time zone: say one such as Europe/Berlin or UTC") from None


FIELDS = "say minute, hour, day of month, month and day of week, such as '0 3 * * *'; a sixth field before them is the second"


def _imaginary(moment: datetime) -> bool:
    """Tell whether no clock ever showed this, since it was moved forward."""
    return moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(tzinfo=None)


def _say(error: Exception) -> str:
    return str(error).lower() or type(error).__name__
