"""Hours and days of event time: they join up, and have names of their own, whatever is done to clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.periods import Grain, Period, most, periods, zone_of

# Changes at night, at midnight, by half an hour, of a whole day, and odd offsets.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Beirut",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
)


def keys(first: str, through: str, grain: Grain, zone: str) -> list[str]:
    return [one.key for one in between(first, through, grain, zone)]


def between(first: str, through: str, grain: Grain, zone: str) -> list[Period]:
    return list(periods(datetime.fromisoformat(first), datetime.fromisoformat(through), grain, zone_of(zone)))


def test_only_what_has_ended_from_where_the_first_event_lies() -> None:
    assert keys("2026-11-22T05:59:59.9Z", "2026-11-22T08:00Z", "hour", "UTC") == [
        "2026-11-22T05:00:00+0000",
        "2026-11-22T06:00:00+0000",
        "2026-11-22T07:00:00+0000",
    ]
    assert keys("2026-11-22T06:00Z", "2026-11-22T06:59:59.999999Z", "hour", "UTC") == []
    assert keys("2026-11-20T23:30Z", "2026-11-22T23:00Z", "day", "Europe/Berlin") == ["2026-11-21", "2026-11-22"]


def test_an_hour_that_comes_twice_has_two_names() -> None:
    assert keys("2026-10-25T00:00Z", "2026-10-25T03:00Z", "hour", "Europe/Berlin") == [
        "2026-10-25T02:00:00+0200",
        "2026-10-25T02:00:00+0100",
        "2026-10-25T03:00:00+0100",
    ]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        # No midnight on that day.
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
    ],
)
def test_a_day_is_as_long_as_its_clock_says(zone: str, day: str, hours: float) -> None:
    noon = datetime.fromisoformat(f"{day}T12:00Z")
    found = {one.key: one for one in periods(noon - timedelta(days=2), noon + timedelta(days=3), "day", zone_of(zone))}
    assert found[day].end - found[day].start == timedelta(hours=hours)


def test_a_day_that_a_zone_leaves_out_has_no_partition() -> None:
    assert keys("2011-12-29T20:00Z", "2012-01-01T00:00Z", "day", "Pacific/Apia") == ["2011-12-29", "2011-12-31"]


@settings(max_examples=200, deadline=None)
@given(
    zone=some.sampled_from(ZONES),
    grain=some.sampled_from(["hour", "day"]),
    first=some.datetimes(datetime(1973, 1, 2), datetime(2037, 1, 1)),
    length=some.timedeltas(timedelta(), timedelta(days=5)),
)
def test_they_join_up_and_are_told_apart(zone: str, grain: Grain, first: datetime, length: timedelta) -> None:
    begin = first.replace(tzinfo=UTC)
    through = begin + length
    found = list(periods(begin, through, grain, ZoneInfo(zone)))
    assert len({one.key for one in found}) == len(found) <= most(begin, through, grain)
    for one, following in pairwise(found):
        assert one.end == following.start
    if found:
        assert found[0].start <= begin < found[0].end
        assert found[-1].end <= through
        longest = timedelta(hours=1.5) if grain == "hour" else timedelta(hours=25)
        assert all(timedelta() < one.end - one.start <= longest for one in found)
        # Nothing that has ended is missing.
        assert not list(periods(found[-1].end, through, grain, ZoneInfo(zone)))
    # The same whenever it is asked.
    later = periods(begin, through + timedelta(hours=30), grain, ZoneInfo(zone))
    assert found == list(later)[: len(found)]


@settings(max_examples=100, deadline=None)
@given(first=some.datetimes(datetime(1973, 1, 2), datetime(2037, 1, 1)), zone=some.sampled_from(ZONES))
def test_a_name_says_when_it_begins(first: datetime, zone: str) -> None:
    begin = first.replace(tzinfo=UTC)
    for one in periods(begin, begin + timedelta(hours=4), "hour", ZoneInfo(zone)):
        assert abs(datetime.fromisoformat(one.key) - one.start) <= timedelta(minutes=30)
        if zone != "Australia/Lord_Howe":
            assert datetime.fromisoformat(one.key) == one.start


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigError, match="Moon/Tycho"):
        zone_of("Moon/Tycho")
    with pytest.raises(ConfigError, match="since="):
        keys("1969-12-31T00:00Z", "2026-01-01T00:00Z", "hour", "UTC")
