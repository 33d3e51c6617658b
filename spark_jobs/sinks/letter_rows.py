"""Dead letters as the rows of their copies: records of a topic, rows of files. Executor side, and the driver's for few.

Rows are made here and not by Spark's expressions, which Spark would plan and compile anew for every batch.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa

from spark_jobs.sinks.plain_arrow import bits, blobs, longs, texts

_FIRST_ATTEMPT: Final = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SAID: Final = ("stage", "error_class", "sqlstate", "message", "column_name", "constraint_name")
_HEADERS: Final = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))


@dataclass(frozen=True, slots=True)
class LettersOf:
    """The micro-batch that letters belong to, and when they failed."""

    pipeline_id: str
    query_id: str
    batch_id: int
    failed_at: datetime


Letters = Sequence[tuple[str, str]]
"""Ids and envelopes."""

MakeRows = Callable[[Letters, LettersOf], pa.RecordBatch]
Header = tuple[str, bytes | None]


def topic_rows(letters: Letters, of: LettersOf) -> pa.RecordBatch:
    """Return ``key``, ``value`` and ``headers`` of records."""
    said = [json.loads(envelope) for _, envelope in letters]
    headers = [
        [*(_raw_headers(one) or ()), *_headers(key, one, of)] for (key, _), one in zip(letters, said, strict=True)
    ]
    columns = [blobs([_raw(one, "raw_key") for one in said]), blobs([_value(one) for one in said]), _lists(headers)]
    return pa.RecordBatch.from_arrays(columns, ["key", "value", "headers"])


def file_rows(letters: Letters, of: LettersOf) -> pa.RecordBatch:
    """Return the columns of the table ``dead_letter``; an event time that Python cannot hold is null."""
    said = [json.loads(envelope) for _, envelope in letters]
    size = len(said)
    failed = _times([of.failed_at] * size)
    columns = {
        "dead_letter_id": texts([key for key, _ in letters]),
        "pipeline_id": texts([of.pipeline_id] * size),
        "query_id": texts([of.query_id] * size),
        "batch_id": longs([of.batch_id] * size),
        **{name: texts([one.get(name) for one in said]) for name in _SAID},
        "raw_key": blobs([_raw(one, "raw_key") for one in said]),
        "raw_value": blobs([_raw(one, "raw_value") for one in said]),
        "raw_headers": _lists([_raw_headers(one) for one in said]),
        "parsed_row": texts([one.get("parsed_row") for one in said]),
        "source": texts([one.get("source") for one in said]),
        "event_time": _times([_moment(one.get("event_time")) for one in said]),
        "attempt": longs([_FIRST_ATTEMPT] * size),
        "first_failed_at": failed,
        "last_failed_at": failed,
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _headers(key: str, said: Mapping[str, Any], of: LettersOf) -> list[Header]:
    source = json.loads(said.get("source") or "{}")
    event_time = _moment(said.get("event_time"))
    named = {
        **{f"__connect.errors.{name}": source.get(name) for name in ("topic", "partition", "offset")},
        "__connect.errors.connector.name": of.pipeline_id,
        "__connect.errors.stage": said.get("stage"),
        "__connect.errors.exception.class.name": said.get("error_class"),
        "__connect.errors.exception.message": said.get("message"),
        "__etl.errors.letter.id": key,
        "__etl.errors.query.id": of.query_id,
        "__etl.errors.batch.id": of.batch_id,
        "__etl.errors.sqlstate": said.get("sqlstate"),
        "__etl.errors.column": said.get("column_name"),
        "__etl.errors.constraint": said.get("constraint_name"),
        "__etl.errors.source": said.get("source"),
        "__etl.errors.event.time": _written(event_time) if event_time else said.get("event_time"),
        "__etl.errors.attempt": _FIRST_ATTEMPT,
        "__etl.errors.first.failed.at": _written(of.failed_at),
    }
    return [(name, str(value).encode()) for name, value in named.items() if value is not None]


def _value(said: Mapping[str, Any]) -> bytes | None:
    raw, row = _raw(said, "raw_value"), said.get("parsed_row")
    return row.encode() if raw is None and row is not None else raw


def _raw(said: Mapping[str, Any], name: str) -> bytes | None:
    text = said.get(name)
    return None if text is None else base64.b64decode(text)


def _raw_headers(said: Mapping[str, Any]) -> list[Header] | None:
    text = said.get("raw_headers")
    if text is None:
        return None
    # A header without a value has no member "value".
    return [(one.get("key", ""), _raw(one, "value")) for one in json.loads(text)]


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _moment(text: str | None) -> datetime | None:
    try:
        found = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)


def _times(moments: Sequence[datetime | None]) -> pa.Array:
    micros = [None if one is None else (one - _EPOCH) // _MICROSECOND for one in moments]
    return longs(micros).view(pa.timestamp("us", "UTC"))


_MICROSECOND: Final = datetime.resolution


def _lists(rows: Sequence[Sequence[Header] | None]) -> pa.Array:
    flat = [header for row in rows for header in row or ()]
    pairs = pa.StructArray.from_arrays([texts([k for k, _ in flat]), blobs([v for _, v in flat])], ["key", "value"])
    offsets = array("i", accumulate((len(row or ()) for row in rows), initial=0))
    return pa.Array.from_buffers(_HEADERS, len(rows), [bits(rows), pa.py_buffer(offsets)], children=[pairs])
