"""Hours and days of event time, and their names as partitions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from spark_jobs.contracts.errors import ConfigError

Grain: TypeAlias = Literal["hour", "day"]

# No zone in use is off UTC by anything but whole quarters of an hour, or was since 1972.
_QUARTER: Final = timedelta(minutes=15)
_FIRST_YEAR: Final = 1973


class Period(NamedTuple):
    """From ``start`` to before ``end``, both in UTC.

    :param key: its name as a partition: ``2026-11-22T06:00:00+0000`` for an hour (``%Y-%m-%dT%H:%M:%S%z``, with its
        own offset, as an hour may come twice when clocks go back), ``2026-11-22`` for a day.
    """

    key: str
    start: datetime
    end: datetime


def zone_of(name: str) -> tzinfo:
    """Return a time zone.

    :raises ConfigError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"There is no time zone {name!r}", expected="a name such as UTC or Europe/Berlin", cure="correct timezone"
        ) from error


def most(first: datetime, through: datetime, grain: Grain) -> int:
    """Return about how many periods there are between two times; never fewer than there are."""
    return max(0, int((through - first) / timedelta(hours=1 if grain == "hour" else 24))) + 3


def periods(first: datetime, through: datetime, grain: Grain, zone: tzinfo) -> Iterator[Period]:
    """Yield the hours or days of a zone, from the one that ``first`` lies in, that have ended by ``through``.

    They join up: each begins where the one before has ended, also where clocks are changed. An hour begins where the
    zone's clock shows a full one; a day where its date begins. So a day has 23 to 25 hours, and is left out where the
    zone has none of that date.

    :raises ConfigError: ``first`` is before 1973.
    """
    if first.astimezone(UTC).year < _FIRST_YEAR:
        raise ConfigError(
            "Hours and days cannot be told that far back",
            found=f"events of {first.isoformat()}",
            expected=f"event times from {_FIRST_YEAR} on",
            cure="say with since= where partitions begin, and filter rows with wrong times out",
        )
    yield from (_hours if grain == "hour" else _days)(first, through, zone)


def _hours(first: datetime, through: datetime, zone: tzinfo) -> Iterator[Period]:
    edge = datetime.fromtimestamp(first.timestamp() // 900 * 900, UTC)
    while not _is_full_hour(edge, zone):
        edge -= _QUARTER
    start = edge
    while (edge := edge + _QUARTER) <= through:
        if _is_full_hour(edge, zone):
            yield Period(start.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S%z"), start, edge)
            start = edge


def _is_full_hour(moment: datetime, zone: tzinfo) -> bool:
    return moment.astimezone(zone).minute == 0


def _days(first: datetime, through: datetime, zone: tzinfo) -> Iterator[Period]:
    day = first.astimezone(zone).date()
    start = _begin(day, zone)
    while (end := _begin(day + timedelta(days=1), zone)) <= through:
        if end > start:
            yield Period(day.isoformat(), start, end)
        day, start = day + timedelta(days=1), end


def _begin(day: date, zone: tzinfo) -> datetime:
    # Where midnight is left out, the clock of the day before says when it would have been: that is the moment.
    return datetime.combine(day, time.min, zone).astimezone(UTC)
