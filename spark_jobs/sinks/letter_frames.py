"""Dead letters as a DataFrame: one envelope for every copy of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, StringType, StructField, StructType

from spark_jobs.contracts.tracker.records import BatchIdentity

_TEXTS = (
    "stage", "error_class", "sqlstate", "message", "column_name", "constraint_name", "raw_key", "raw_value",
    "raw_headers", "parsed_row", "source", "event_time",
)  # fmt: skip
_ENVELOPE = StructType([StructField(name, StringType()) for name in _TEXTS])
_HEADERS = ArrayType(StructType([StructField("key", StringType()), StructField("value", BinaryType())]))
STAGED = StructType([StructField("id", StringType()), StructField("envelope", StringType())])
"""What is read from where the letters were staged."""
_FIRST_ATTEMPT = 1


@dataclass(frozen=True, slots=True)
class LettersBatch:
    """The micro-batch that letters belong to.

    :param planned_at: when Spark planned it, which stays the same when it is done again.
    """

    identity: BatchIdentity
    planned_at: datetime


def letters_frame(staged: DataFrame, batch: LettersBatch, failed_at: datetime) -> DataFrame:
    """Return the letters with the columns of the ledger's table ``dead_letter``.

    Bytes as they came are BINARY, ``raw_headers`` ARRAY<STRUCT<key: STRING, value: BINARY>>, ``parsed_row`` and
    ``source`` JSON texts; an ``event_time`` that Spark cannot hold is NULL.

    :param staged: of the schema :data:`STAGED`.
    """
    key = batch.identity
    said = staged.select("id", F.from_json("envelope", _ENVELOPE).alias("l"))
    failed = F.lit(failed_at.astimezone(UTC).isoformat()).cast("timestamp")

    def text(name: str) -> Column:
        return F.col(f"l.{name}").alias(name)

    return said.select(
        F.col("id").alias("dead_letter_id"),
        F.lit(key.pipeline_id).alias("pipeline_id"),
        F.lit(key.query_id).alias("query_id"),
        F.lit(key.batch_id).cast("bigint").alias("batch_id"),
        *(text(name) for name in ("stage", "error_class", "sqlstate", "message", "column_name", "constraint_name")),
        F.unbase64("l.raw_key").alias("raw_key"),
        F.unbase64("l.raw_value").alias("raw_value"),
        F.from_json("l.raw_headers", _HEADERS).alias("raw_headers"),
        text("parsed_row"),
        text("source"),
        F.col("l.event_time").try_cast("timestamp").alias("event_time"),
        F.lit(_FIRST_ATTEMPT).alias("attempt"),
        failed.alias("first_failed_at"),
        failed.alias("last_failed_at"),
    )
