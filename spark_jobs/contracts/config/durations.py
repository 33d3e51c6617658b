"""Spans of time as Spark writes them: ``10 minutes``, ``1 hour 30 minutes``, ``500 milliseconds``."""

from __future__ import annotations

import re
from datetime import timedelta

from spark_jobs.contracts.config.problems import nearest

UNITS = {
    "microsecond": timedelta(microseconds=1),
    "millisecond": timedelta(milliseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
_PAIR = re.compile(r"(\d{1,12})\s+([A-Za-z]+)")
_GLUED = re.compile(r"\s*(\d+)\s*(us|ms|s|sec|secs|m|min|mins|h|hr|hrs|d|w)\s*", re.IGNORECASE)
_LONG_NAMES = {
    "u": "microsecond",
    "ms": "millisecond",
    "s": "second",
    "m": "minute",
    "h": "hour",
    "d": "day",
    "w": "week",
}


class DurationError(ValueError):
    """The text is no duration; ``hint`` may have the way out."""

    def __init__(self, hint: str) -> None:
        self.hint = hint
        super().__init__(hint)


def parse_duration(text: str) -> timedelta:
    """Return the length of a duration.

    :raises DurationError: it is not ``<number> <unit>`` once or several times, or is longer than 100 years.
    """
    words = re.sub(r"^\s*interval\s+", "", text, flags=re.IGNORECASE).strip()
    pairs = _PAIR.findall(words)
    if not pairs or re.sub(r"\s+", " ", words) != " ".join(f"{number} {unit}" for number, unit in pairs):
        raise DurationError(_hint(text))
    total = timedelta()
    for number, unit in pairs:
        length = UNITS.get(unit.lower().removesuffix("s"))
        if length is None:
            raise DurationError(_unit_hint(unit))
        try:
            total += int(number) * length
        except OverflowError:
            raise DurationError("that is longer than 100 years") from None
    if total > timedelta(days=36525):
        raise DurationError("that is longer than 100 years")
    return total


def _unit_hint(unit: str) -> str:
    if unit.lower().removesuffix("s") in ("month", "year", "quarter"):
        return "months and years differ in length; write days"
    return nearest(unit, [f"{name}s" for name in UNITS]) or f"the units are {', '.join(f'{name}s' for name in UNITS)}"


def _hint(text: str) -> str:
    if glued := _GLUED.fullmatch(text):
        number, short = glued.groups()
        name = _LONG_NAMES["ms"] if short.lower() == "ms" else _LONG_NAMES[short[0].lower()]
        return f'write "{int(number[:12])} {name}s"'
    if text.strip().isdigit():
        return f'the unit is missing; write "{text.strip()[:12]} seconds"'
    return 'write a number, a space and a unit, as in "10 minutes"'
