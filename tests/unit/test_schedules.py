"""When slots are: tables with the real transitions of four zones, and the same as cronsim where that loses nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from howdah.errors import ScheduleError
from howdah.schedules import MOST, Schedule, Timetable, delay_of, plan

BERLIN, NEW_YORK, LORD_HOWE, APIA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"


def at(text: str, zone: str = "UTC") -> datetime:
    """A moment as ISO 8601 says it; in a zone if it names no offset."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)


def slots(cron: str, zone: str, since: str, until: str) -> list[str]:
    """The slots from one wall time to another, as the wall and its offset show them."""
    first, last = at(since, zone), at(until, zone)
    found = takewhile(lambda slot: slot < last, Timetable(cron, zone).after(first - timedelta(microseconds=1)))
    return [slot.astimezone(ZoneInfo(zone)).isoformat()[5:] for slot in found]


# Real transitions. The clocks of Berlin jump from 02:00 to 03:00 on 2025-03-30 and from 03:00 back to 02:00 on 2025-10-26; those of New York
# from 02:00 to 03:00 on 2025-03-09 and from 02:00 back to 01:00 on 2025-11-02; those of Lord Howe from 02:00 to 02:30 on 2025-10-05 and from
# 02:00 back to 01:30 on 2025-04-06. Apia had no 2011-12-30: the 29th was followed by the 31st. It went from 03:00 to 04:00 on 2011-09-24 and
# from 04:00 back to 03:00 on 2012-04-01.
TABLE = [
    # -- a fixed time that the clocks jump over comes as soon as they have jumped
    (BERLIN, "30 2 * * *", "2025-03-29", "2025-04-01", ["03-29T02:30:00+01:00", "03-30T03:00:00+02:00", "03-31T02:30:00+02:00"]),
    (BERLIN, "0,30 2 * * *", "2025-03-30", "2025-03-31", ["03-30T03:00:00+02:00"]),
    (BERLIN, "0 2,3 * * *", "2025-03-30", "2025-03-31", ["03-30T03:00:00+02:00"]),
    (BERLIN, "0 1-4 * * *", "2025-03-30", "2025-03-31", ["03-30T01:00:00+01:00", "03-30T03:00:00+02:00", "03-30T04:00:00+02:00"]),
    (NEW_YORK, "15 2 * * *", "2025-03-08", "2025-03-11", ["03-08T02:15:00-05:00", "03-09T03:00:00-04:00", "03-10T02:15:00-04:00"]),
    (LORD_HOWE, "0 2 * * *", "2025-10-05", "2025-10-07", ["10-05T02:30:00+11:00", "10-06T02:00:00+11:00"]),
    (LORD_HOWE, "15 2 * * *", "2025-10-05", "2025-10-06", ["10-05T02:30:00+11:00"]),
    (LORD_HOWE, "45 2 * * *", "2025-10-05", "2025-10-06", ["10-05T02:45:00+11:00"]),
    (APIA, "0 3 * * *", "2011-12-29", "2012-01-01", ["12-29T03:00:00-10:00", "12-31T00:00:00+14:00", "12-31T03:00:00+14:00"]),
    (APIA, "0 0 * * *", "2011-12-29", "2012-01-01", ["12-29T00:00:00-10:00", "12-31T00:00:00+14:00"]),
    (APIA, "0 12 30 12 *", "2011-12-01", "2012-12-31", ["12-31T00:00:00+14:00", "12-30T12:00:00+14:00"]),
    (APIA, "30 3 * * *", "2011-09-24", "2011-09-25", ["09-24T04:00:00-10:00"]),
    # -- one that comes twice counts the first time
    (BERLIN, "30 2 * * *", "2025-10-25", "2025-10-28", ["10-25T02:30:00+02:00", "10-26T02:30:00+02:00", "10-27T02:30:00+01:00"]),
    (NEW_YORK, "30 1 * * *", "2025-11-01", "2025-11-04", ["11-01T01:30:00-04:00", "11-02T01:30:00-04:00", "11-03T01:30:00-05:00"]),
    (NEW_YORK, "59 0-2 * * *", "2025-11-02", "2025-11-03", ["11-02T00:59:00-04:00", "11-02T01:59:00-04:00", "11-02T02:59:00-05:00"]),
    (LORD_HOWE, "45 1 * * *", "2025-04-06", "2025-04-08", ["04-06T01:45:00+11:00", "04-07T01:45:00+10:30"]),
    (LORD_HOWE, "0 2 * * *", "2025-04-06", "2025-04-08", ["04-06T02:00:00+10:30", "04-07T02:00:00+10:30"]),
    (APIA, "30 3 * * *", "2012-04-01", "2012-04-02", ["04-01T03:30:00+14:00"]),
    # -- what runs all the time goes by real time
    (BERLIN, "0 * * * *", "2025-03-30T00:30", "2025-03-30T04:30", ["03-30T01:00:00+01:00", "03-30T03:00:00+02:00", "03-30T04:00:00+02:00"]),
    (BERLIN, "*/30 * * * *", "2025-03-30T01:15", "2025-03-30T03:45", ["03-30T01:30:00+01:00", "03-30T03:00:00+02:00", "03-30T03:30:00+02:00"]),
    (BERLIN, "0 * * * *", "2025-10-26T01:30", "2025-10-26T03:30",
     ["10-26T02:00:00+02:00", "10-26T02:00:00+01:00", "10-26T03:00:00+01:00"]),
    (BERLIN, "*/30 * * * *", "2025-10-26T01:45", "2025-10-26T03:15",
     ["10-26T02:00:00+02:00", "10-26T02:30:00+02:00", "10-26T02:00:00+01:00", "10-26T02:30:00+01:00", "10-26T03:00:00+01:00"]),
    (BERLIN, "*/30 2 * * *", "2025-03-30", "2025-03-31", []),
    (BERLIN, "0 */2 * * *", "2025-10-26", "2025-10-26T05:00",
     ["10-26T00:00:00+02:00", "10-26T02:00:00+02:00", "10-26T02:00:00+01:00", "10-26T04:00:00+01:00"]),
    (NEW_YORK, "0 * * * *", "2025-03-09T00:30", "2025-03-09T04:30", ["03-09T01:00:00-05:00", "03-09T03:00:00-04:00", "03-09T04:00:00-04:00"]),
    (NEW_YORK, "*/30 * * * *", "2025-11-02T00:45", "2025-11-02T02:15",
     ["11-02T01:00:00-04:00", "11-02T01:30:00-04:00", "11-02T01:00:00-05:00", "11-02T01:30:00-05:00", "11-02T02:00:00-05:00"]),
    (LORD_HOWE, "*/30 * * * *", "2025-10-05T01:15", "2025-10-05T03:15", ["10-05T01:30:00+10:30", "10-05T02:30:00+11:00", "10-05T03:00:00+11:00"]),
    (LORD_HOWE, "0 * * * *", "2025-10-05T00:30", "2025-10-05T03:30", ["10-05T01:00:00+10:30", "10-05T03:00:00+11:00"]),
    (LORD_HOWE, "*/30 * * * *", "2025-04-06T01:15", "2025-04-06T02:45",
     ["04-06T01:30:00+11:00", "04-06T01:30:00+10:30", "04-06T02:00:00+10:30", "04-06T02:30:00+10:30"]),
    (LORD_HOWE, "0 * * * *", "2025-04-06T00:30", "2025-04-06T03:30",
     ["04-06T01:00:00+11:00", "04-06T02:00:00+10:30", "04-06T03:00:00+10:30"]),
    # cronsim gives no 02:00 here
    (LORD_HOWE, "0 */2 * * *", "2025-04-06", "2025-04-06T05:00", ["04-06T00:00:00+11:00", "04-06T02:00:00+10:30", "04-06T04:00:00+10:30"]),
    (APIA, "0 */12 * * *", "2011-12-29", "2012-01-01",
     ["12-29T00:00:00-10:00", "12-29T12:00:00-10:00", "12-31T00:00:00+14:00", "12-31T12:00:00+14:00"]),
    (APIA, "*/30 23 * * *", "2011-12-29", "2012-01-01",
     ["12-29T23:00:00-10:00", "12-29T23:30:00-10:00", "12-31T23:00:00+14:00", "12-31T23:30:00+14:00"]),
    # -- the calendar
    ("UTC", "0 3 29 2 *", "2023-01-01", "2033-01-01", ["02-29T03:00:00+00:00"] * 3),
    ("UTC", "0 18 L * *", "2024-01-01", "2024-05-01", ["01-31T18:00:00+00:00", "02-29T18:00:00+00:00", "03-31T18:00:00+00:00", "04-30T18:00:00+00:00"]),
    ("UTC", "0 18 LW * *", "2025-05-01", "2025-07-01", ["05-30T18:00:00+00:00", "06-30T18:00:00+00:00"]),
    ("UTC", "0 0 31 * *", "2025-01-01", "2025-06-01", ["01-31T00:00:00+00:00", "03-31T00:00:00+00:00", "05-31T00:00:00+00:00"]),
    ("UTC", "0 9 * * MON#1", "2025-01-01", "2025-03-01", ["01-06T09:00:00+00:00", "02-03T09:00:00+00:00"]),
    ("UTC", "0 9 * * 5L", "2025-01-01", "2025-03-01", ["01-31T09:00:00+00:00", "02-28T09:00:00+00:00"]),
    ("UTC", "0 0 13 * 5", "2025-06-01", "2025-06-15", ["06-06T00:00:00+00:00", "06-13T00:00:00+00:00"]),
    (BERLIN, "30 2 L 3 *", "2025-01-01", "2025-12-31", ["03-31T02:30:00+02:00"]),
    (NEW_YORK, "0 0 1 1 *", "2024-12-01", "2026-02-01", ["01-01T00:00:00-05:00", "01-01T00:00:00-05:00"]),
    ("UTC", "*/20 59 23 31 12 *", "2025-12-31", "2026-01-01", ["12-31T23:59:00+00:00", "12-31T23:59:20+00:00", "12-31T23:59:40+00:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "cron", "since", "until", "expected"), TABLE)
def test_slots_are_where_the_rules_say(zone: str, cron: str, since: str, until: str, expected: list[str]) -> None:
    assert slots(cron, zone, since, until) == expected


CRONS = ["*/30 * * * *", "0 * * * *", "30 2 * * *", "0,30 2 * * *", "15 1-3 * * *", "0 */2 * * *", "*/15 2 * * *", "5 0 * * *", "0 0 L * *",
         "30 1 * * 0", "0 12 * * MON#1", "59 23 * * *", "0 0 1 */3 *", "0 9 LW * *", "0 0 13 * 5"]  # fmt: skip


def transitions(zone: str, *years: int) -> list[datetime]:
    """The days of some years before which a zone's clocks are moved."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day) for year in years for day in range(365)]
    offsets = [day.astimezone(ZoneInfo(zone)).utcoffset() for day in days]
    return [day for day, before, after in zip(days, offsets, offsets[1:], strict=False) if before != after]


def from_cronsim(cron: str, zone: str, start: datetime, until: datetime) -> list[datetime]:
    found: list[datetime] = []
    for slot in CronSim(cron, start.astimezone(ZoneInfo(zone))):
        moment = slot.astimezone(UTC)
        if moment > until:
            break
        if not found or moment > found[-1]:  # it gives two jumped-over times as the same moment
            found.append(moment)
    return found


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, APIA, "America/Havana", "Antarctica/Troll"])
def test_where_clocks_move_by_whole_hours_the_slots_are_those_of_cronsim(zone: str) -> None:
    days = transitions(zone, 2012, 2025) if zone != APIA else transitions(zone, 2011, 2012)
    assert len(days) >= 2
    for cron in CRONS:
        for day in days:
            start, until = day - timedelta(days=1, seconds=43), day + timedelta(days=3)
            slots = list(islice(Timetable(cron, zone).after(start), 400))
            assert [slot for slot in slots if slot <= until] == from_cronsim(cron, zone, start, until), (cron, day)


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE, APIA])
def test_slots_are_the_same_from_wherever_they_are_counted(zone: str) -> None:
    """A worker counts on from the last slot, another one from long before: both must come to the same next one."""
    for cron in ("*/30 * * * *", "0,30 1-3 * * *", "0 */2 * * *", "0 3 * * *"):
        timetable = Timetable(cron, zone)
        for day in transitions(zone, 2011, 2025):
            start = last = day - timedelta(days=2)
            at_once = list(islice(timetable.after(start), 150))
            assert [last := timetable.first_after(last) for _ in at_once] == at_once
            assert timetable.latest(start, at_once[-1], 70) == at_once[-70:]
            assert len(at_once) == len(set(at_once))


@pytest.mark.parametrize(
    "cron",
    ["", "0 3 * *", "0 3 * * * * *", "60 3 * * *", "0 24 * * *", "0 3 * * 9", "0 3 30 2 *", "*/0 * * * *", "soon", "5-1 * * * *", "@daily", "0 3 * * MON#6",
     "a\x00 3 * * *"],
)  # fmt: skip
def test_what_is_no_expression_is_refused_by_name(cron: str) -> None:
    with pytest.raises(ScheduleError, match=r"is no cron expression: .*; say minute, hour"):
        Timetable(cron)


@pytest.mark.parametrize(
    "zone", ["", "Berlin", "Europe", "../etc/passwd", "/etc/passwd", "CEST\x00", "europe/berlin/x"]
)
def test_what_is_no_time_zone_is_refused_by_name(zone: str) -> None:
    with pytest.raises(ScheduleError, match="is no time zone: say one such as Europe/Berlin"):
        Timetable("0 3 * * *", zone)


@pytest.mark.parametrize("wrong", [{"missed": "some"}, {"overlap": "maybe"}, {"jitter": -1}, {"jitter": 1e6}])
def test_policies_that_nobody_can_follow_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ScheduleError, match=next(iter(wrong))):
        Schedule("0 3 * * *", **wrong).check()  # type: ignore[arg-type]


def test_an_expression_that_never_comes_again_is_told() -> None:
    with pytest.raises(ScheduleError, match="no time within 50 years"):
        Timetable("0 0 LW * */7").first_after(datetime(2025, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(("missed", "kept", "given_up"), [("skip", 0, 5), ("one", 1, 4), ("all", 5, 0)])
def test_missed_slots_are_made_up_for_as_the_policy_says_and_those_in_time_always(
    missed: str, kept: int, given_up: int
) -> None:
    # Ten minutes' slots from 03:00; the last one is ten seconds old, the five before were missed.
    now = at("2025-06-01T03:50:10")
    told = plan(Timetable("*/10 * * * *"), missed, at("2025-06-01T02:55"), now)
    assert (len(told.slots), told.late, told.missed) == (kept + 1, 5, given_up)
    assert told.slots == sorted(told.slots)
    assert told.slots[-1] == told.until == at("2025-06-01T03:50")
    assert missed != "one" or told.slots[0] == at("2025-06-01T03:40")
    assert told.next_at == at("2025-06-01T04:00")


@pytest.mark.fault("Time", "a schedule's clock stands still or goes back", "no slot comes a second time")
def test_nothing_due_moves_nothing_whatever_the_clock_does() -> None:
    timetable = Timetable("*/10 * * * *")
    done = at("2025-06-01T03:10")
    for now in ("2025-06-01T03:10", "2025-06-01T03:19:59", "2025-06-01T02:00"):
        told = plan(timetable, "all", done, at(now))
        assert (told.slots, told.late, told.until, told.next_at) == ([], 0, done, at("2025-06-01T03:20"))


@pytest.mark.parametrize("cron", ["* * * * * *", "* * * * *"])
def test_after_a_long_outage_no_more_than_a_thousand_are_made_up_for(cron: str) -> None:
    now = at("2025-12-01T00:00:30")
    told = plan(Timetable(cron, BERLIN), "all", now - timedelta(days=200), now)
    assert told.late == MOST
    assert told.until <= now < told.next_at
    assert now - told.slots[0] < timedelta(days=1)


def test_jitter_is_within_its_bounds_and_one_slot_has_always_the_same() -> None:
    days = list(islice(Timetable("0 3 * * *").after(datetime(2025, 1, 1, tzinfo=UTC)), 200))
    delays = [delay_of("nightly", slot, 300) for slot in days]
    assert all(0 <= delay <= 300 for delay in delays)
    assert len(set(delays)) > 150
    assert delays == [delay_of("nightly", slot, 300) for slot in days]
    assert delays != [delay_of("other", slot, 300) for slot in days]
    assert delay_of("nightly", days[0], 0) == 0
