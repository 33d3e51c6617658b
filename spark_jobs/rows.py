"""How a source row carries its outcome through a pipeline.

Rows are never dropped on the way: a row that cannot be read or does not pass a filter keeps travelling with its
outcome, so that whoever ends the journey (the writers, or the counts before an aggregation) accounts for every one.
Two columns ride along with the data:

- ``__outcome`` TINYINT NOT NULL: one of :class:`Outcome`;
- ``__letter`` STRING: for dead letters the envelope as JSON (raw bytes in base64), else NULL.

``__event_time`` TIMESTAMP rides along where the pipeline has a watermark, and ``__source`` STRUCT, the row's
coordinates in its source, up to the writers. In a past range, which is read where there are letters to be made, also
``__row`` STRUCT, the schema's columns as the source gave them, and from sources that have one ``__raw``
STRUCT<key BINARY, value BINARY, headers STRING>, the record as it came. A query's own stream has neither: a healthy
batch pays for none of it.

What a dead letter holds of its row, by stage:

- ``parse``: ``raw_value`` (of Kafka ``raw_key`` and ``raw_headers`` too) is the record as it came, of CSV the record as
  Spark decoded it; no ``parsed_row``.
- ``transform``: ``parsed_row`` is the row as the source gave it, the schema's columns, before the first transform. The
  raw fields are the record as it came, of Kafka and JSON lines.
- ``write``: ``parsed_row`` is the row as it was to be written, with the target's columns. The raw fields are the record
  as it came, of Kafka and JSON lines, but none of an aggregation's result, which is made of many rows.

A row of CSV, Parquet or ``rate``, or an aggregation's result, has no record in the stages ``transform`` and ``write``.
There ``raw_value`` is NULL, or, where jsonb cannot hold the row (U+0000, lone surrogates, numbers beyond its limits),
the exact text of the JSON of which ``parsed_row`` is the part that could be shown.
"""

from __future__ import annotations

from enum import IntEnum

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    ByteType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructType,
    TimestampType,
)

OUTCOME = "__outcome"
LETTER = "__letter"
EVENT_TIME = "__event_time"
SOURCE = "__source"
ROW = "__row"
RAW = "__raw"
LETTER_ID = "__letter_id"
"""Of a replay: STRING, which dead letter a record is of; rides along until the row's coordinates are put together."""
CARRIED = (OUTCOME, LETTER, EVENT_TIME, SOURCE, ROW, RAW)
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
    :param raw_value: BINARY as it came. :param raw_key: BINARY. :param raw_headers: STRING, JSON.
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
        (null if raw_headers is None else raw_headers).alias("raw_headers"),
        (null if parsed_row is None else parsed_row).alias("parsed_row"),
        F.to_json(source).alias("source"),
        (null if event_time is None else event_time).alias("event_time"),
    )
    return F.to_json(fields)


def letter_again(*, stage: str, error_class: Column, message: Column) -> Column:
    """Return the envelope of a dead letter that fails again: it has its record and coordinates already.

    To take them along would have them decoded for each letter, also of those that come home.
    """
    return letter(stage=stage, error_class=error_class, message=message, source=F.struct(F.col(LETTER_ID)))


def raw_record(value: Column, key: Column | None = None, headers: Column | None = None) -> Column:
    """Return the column ``__raw`` of a source whose rows are records.

    :param value: BINARY, as is ``key``. :param headers: ARRAY<STRUCT<key: STRING, value: BINARY>>.
    """
    return F.struct(
        (F.lit(None).cast("binary") if key is None else key).alias("key"),
        value.alias("value"),
        (F.lit(None).cast("string") if headers is None else F.to_json(headers)).alias("headers"),
    )


def transform_letter(df: DataFrame, *, error_class: Column, message: Column) -> Column:
    """Return the envelope of a row of ``df`` that does not get through the transforms."""
    parsed_row = json_text(F.col(ROW)) if ROW in df.columns else None
    raw: dict[str, Column] = {}
    if RAW in df.columns:
        raw = {"raw_key": F.col(RAW)["key"], "raw_value": F.col(RAW)["value"], "raw_headers": F.col(RAW)["headers"]}
    elif parsed_row is not None:
        # U+0000, which jsonb cannot hold.
        raw = {"raw_value": F.when(F.contains(parsed_row, F.lit("\\u0000")), F.encode(parsed_row, "UTF-8"))}
    event_time = moment_text(F.col(EVENT_TIME)) if EVENT_TIME in df.columns else None
    return letter(
        stage="transform",
        error_class=error_class,
        message=message,
        source=F.col(SOURCE),
        parsed_row=parsed_row,
        event_time=event_time,
        **raw,
    )


# Arrow's values of these types are as JSON has them, or easily made so.
_PLAIN = (StringType, ByteType, ShortType, IntegerType, LongType, BooleanType, TimestampType)


def origin_columns(schema: StructType, *, as_text: bool) -> list[Column]:
    """Return what a writer must know of a row, beside its data, to make a dead letter of it.

    :func:`spark_jobs.sinks.origins.carried_origin` reads it: ``__source``, a STRUCT, or its JSON where a coordinate has
    an unusual type, and ``__raw`` where there is one. The event time goes along by itself.

    :param as_text: whether ``__source`` is to be JSON in any case.
    """
    coordinates = schema[SOURCE].dataType
    plain = (
        not as_text
        and isinstance(coordinates, StructType)
        and all(isinstance(one.dataType, _PLAIN) for one in coordinates)
    )
    columns = [F.col(SOURCE) if plain else F.to_json(F.col(SOURCE)).alias(SOURCE)]
    return [*columns, F.col(RAW)] if RAW in schema.names else columns


def moment_text(column: Column) -> Column:
    """Return a TIMESTAMP as ISO 8601 with its offset; NULL outside of the years that have four digits."""
    known = column.between(F.lit("0001-01-02").cast("timestamp"), F.lit("9999-12-30").cast("timestamp"))
    return F.when(known, F.date_format(column, "yyyy-MM-dd HH:mm:ss.SSSSSSXXX"))


_JSON = {
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def json_text(column: Column) -> Column:
    """Return a struct, array, map or variant as JSON with all of it: ``to_json`` leaves out nulls and microseconds."""
    return F.to_json(column, _JSON)
