"""Where a refused row comes from, read from what came along with it. Executor side."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute

from spark_jobs.sinks.arrow_values import value_of
from spark_jobs.sinks.plain_arrow import longs
from spark_jobs.sinks.sorting import EVENT_TIME, RAW, SOURCE

# pyarrow makes these functions when it is imported; no stub knows them.
pc: Any = pyarrow.compute

Origin = Mapping[str, str]
"""``source``, the JSON of a row's coordinates; ``raw_key`` and ``raw_value`` in base64, and ``raw_headers``. What
there is not is left out; a row that is made of many has none."""


ORIGIN_TYPES = {
    "__source": "text",
    "__event_time": "bigint",
    "__raw_key": "bytea",
    "__raw_value": "bytea",
    "__raw_headers": "text",
}
"""The columns in which a staging table has a row's origin, and their types. The event time is microseconds since 1970.
A row that no merge will refuse has NULL in them."""

_RAW = tuple(name.removeprefix("__raw_") for name in ORIGIN_TYPES if name.startswith("__raw_"))


def origin_arrays(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return what came along with some rows as a staging table has it (:data:`ORIGIN_TYPES`)."""
    found = {SOURCE: rows.column(SOURCE)}
    if EVENT_TIME in rows.column_names:
        found[EVENT_TIME] = rows.column(EVENT_TIME).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    if RAW in rows.column_names:
        found |= {f"{RAW}_{name}": pc.struct_field(rows.column(RAW), name) for name in _RAW}
    return found


def staged_origin(source: str | None, raw: Sequence[Any]) -> Origin:
    """Return the origin that a staging table has of a row, whose event time is not in it.

    :param raw: key, value and headers.
    """
    return {} if source is None else carried_origin(source, dict(zip(_RAW, raw, strict=True)))


def event_time_text(microseconds: int | None) -> str | None:
    """Return a staged event time as a dead letter has it."""
    if microseconds is None:
        return None
    return str(value_of(longs([microseconds]).cast(pa.timestamp("us", "UTC"))[0]))


def carried_origin(source: Any, raw: Mapping[str, Any] | None) -> Origin:
    """Return the origin of a row as its Arrow values have it (:func:`spark_jobs.rows.origin_columns`).

    :param source: its coordinates, or the JSON of them. :param raw: the record as it came, if the source has one.
    """
    found = {"source": source if isinstance(source, str) else _coordinates(source)}
    for name, value in (raw or {}).items():
        if value is not None:
            found[f"raw_{name}"] = value if isinstance(value, str) else base64.b64encode(value).decode()
    return found


def _coordinates(source: Mapping[str, Any]) -> str:
    # As Spark's to_json writes them, by which the parse stage's letters have theirs.
    given = {name: _moment(value) for name, value in source.items() if value is not None}
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def _moment(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    text = value.isoformat(timespec="milliseconds")
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text
