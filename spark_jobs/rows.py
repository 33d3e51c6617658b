"""How a source row carries its outcome through a pipeline.

Rows are never dropped on the way: a row that cannot be read or does not pass a filter keeps travelling with its
outcome, so that whoever ends the journey (the writers, or the counts before an aggregation) accounts for every one.
Two columns ride along with the data:

- ``__outcome`` TINYINT NOT NULL: one of :class:`Outcome`;
- ``__letter`` STRING: for dead letters the envelope as JSON (raw bytes in base64), else NULL.

``__event_time`` TIMESTAMP rides along where the pipeline has a watermark, and ``__source`` STRUCT, the row's
coordinates in its source, up to the writers.
"""

from __future__ import annotations

from enum import IntEnum

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

OUTCOME = "__outcome"
LETTER = "__letter"
EVENT_TIME = "__event_time"
SOURCE = "__source"
LETTER_ID = "__letter_id"
"""Of a replay: STRING, which dead letter a record is of; rides along until the row's coordinates are put together."""
CARRIED = (OUTCOME, LETTER, EVENT_TIME, SOURCE)
TO_WRITERS = (OUTCOME, LETTER, EVENT_TIME)


class Outcome(IntEnum):
    """What became of a source row."""

    PASSED = 0
    DEAD_LETTER = 1
    FILTERED = 2
    LATE = 3


def passed() -> Column:
    """Return the condition that a row is still on its way to the target."""
    return F.col(OUTCOME) == F.lit(int(Outcome.PASSED)).cast("tinyint")


def outcome(value: Outcome) -> Column:
    """Return an outcome as a literal of the column's type."""
    return F.lit(int(value)).cast("tinyint")


def data_columns(df: DataFrame) -> list[str]:
    """Return the columns that belong to the data, in order."""
    return [name for name in df.columns if name not in CARRIED]


def letter(
    *,
    stage: str,
    error_class: Column,
    message: Column,
    source: Column,
    raw_value: Column | None = None,
    raw_key: Column | None = None,
    raw_headers: Column | None = None,
    parsed_row: Column | None = None,
    event_time: Column | None = None,
) -> Column:
    """Return a dead letter's envelope as a JSON string.

    :param source: STRUCT with the coordinates of the row in its source.
    :param raw_value: BINARY as it came. :param raw_key: BINARY. :param raw_headers: ARRAY<STRUCT<key, value>>.
    :param parsed_row: STRING, JSON of the row where it could be read.
    """
    null = F.lit(None).cast("string")

    def encoded(column: Column | None) -> Column:
        return null if column is None else F.base64(column)

    fields = F.struct(
        F.lit(stage).alias("stage"),
        error_class.cast("string").alias("error_class"),
        message.cast("string").alias("message"),
        encoded(raw_key).alias("raw_key"),
        encoded(raw_value).alias("raw_value"),
        (null if raw_headers is None else F.to_json(raw_headers)).alias("raw_headers"),
        (null if parsed_row is None else parsed_row).alias("parsed_row"),
        F.to_json(source).alias("source"),
        (null if event_time is None else event_time.cast("string")).alias("event_time"),
    )
    return F.to_json(fields)


_JSON = {
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def json_text(column: Column) -> Column:
    """Return a struct, array, map or variant as JSON with all of it: ``to_json`` leaves out nulls and microseconds."""
    return F.to_json(column, _JSON)
