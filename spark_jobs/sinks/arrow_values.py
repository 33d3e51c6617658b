"""Values of Arrow as a dead letter needs them: also those that Python's types cannot hold. Executor side."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000
# The calendar repeats itself after 400 years.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097


def value_of(scalar: pa.Scalar) -> object:
    """Return a value as Python has it, a text that is no UTF-8 as its bytes, a distant moment as a text."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()
    except (ValueError, OverflowError):
        return _distant(scalar)


def _distant(scalar: pa.Scalar) -> str:
    kind = scalar.type
    if pa.types.is_date32(kind):
        return moment_text(scalar.cast(pa.int32()).as_py() * _DAY)[0]
    if pa.types.is_timestamp(kind) and kind.unit == "us":
        day, time = moment_text(scalar.cast(pa.int64()).as_py())
        head, era = day.removesuffix(" BC"), " BC" if day.endswith(" BC") else ""
        return f"{head} {time}{'' if kind.tz is None else '+00:00'}{era}"
    return str(scalar.cast(pa.string()))


def moment_text(microseconds: int) -> tuple[str, str]:
    """Return day and time so many microseconds after 1970 as PostgreSQL writes them; Arrow's years end at 32767."""
    days, time = divmod(microseconds, _DAY)
    cycles, day = divmod(days, _CYCLE_DAYS)
    moment = _EPOCH + timedelta(days=day, microseconds=time)
    year = moment.year + cycles * _CYCLE_YEARS
    written = f"{year:04d}-{moment:%m-%d}" if year > 0 else f"{1 - year:04d}-{moment:%m-%d} BC"
    return written, moment.strftime("%H:%M:%S.%f")
