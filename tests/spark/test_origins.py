"""A row's coordinates are the same text whether Spark writes them, for what it cannot parse, or the writer does."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_jobs.rows import SOURCE, origin_columns
from spark_jobs.sinks.origins import carried_origin

MOMENTS = [datetime(2026, 1, 2, 3, 4, 5, 678_999, UTC), datetime(1969, 12, 31, 23, 59, 59, 1, UTC), None]
KAFKA = "topic STRING, partition INT, offset BIGINT, timestamp TIMESTAMP"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "topic", ["orders", 'a "quoted\\" b', "gr\u00fc\u00dfe \u2603 \U0001f600", "tab\t\x01\x7f/</", None]
)
def test_coordinates_are_written_as_spark_writes_them(spark: Any, topic: str | None, moment: datetime | None) -> None:
    frame = spark.createDataFrame([((topic, 3, 2**40, moment),)], f"{SOURCE} STRUCT<{KAFKA}>")
    [row] = (
        frame.select(F.to_json(SOURCE).alias("text"), *origin_columns(frame.schema, as_text=False))
        .toArrow()
        .to_pylist()
    )
    assert carried_origin(row[SOURCE], None) == {"source": row["text"]}


@pytest.mark.parametrize("odd", ["DATE", "DOUBLE", "STRUCT<a: INT>"])
def test_unusual_coordinates_are_written_by_spark(spark: Any, odd: str) -> None:
    value = {"DATE": date(2026, 1, 2), "DOUBLE": 1e20}.get(odd, (1,))
    frame = spark.createDataFrame([((value,),)], StructType.fromDDL(f"{SOURCE} STRUCT<at: {odd}>"))
    [row] = (
        frame.select(F.to_json(SOURCE).alias("text"), *origin_columns(frame.schema, as_text=False))
        .toArrow()
        .to_pylist()
    )
    assert carried_origin(row[SOURCE], None) == {"source": row["text"]}


def test_a_record_is_encoded_and_what_it_does_not_have_is_left_out() -> None:
    raw = {"key": None, "value": b"\xff\0", "headers": '[{"key":"a"}]'}
    assert carried_origin({"offset": 1}, raw) == {
        "source": '{"offset":1}', "raw_value": "/wA=", "raw_headers": '[{"key":"a"}]'
    }  # fmt: skip
