"""Spark's ``rate-micro-batch``: numbered rows out of nothing, for trying things out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from typing_extensions import override

from spark_jobs.rows import LETTER, OUTCOME, Outcome, outcome
from spark_jobs.sources.base import BatchSize, OffsetRange, Source


class RateSource(Source):
    """Columns ``timestamp`` TIMESTAMP and ``value`` BIGINT; ``rowsPerBatch`` rows a micro-batch, always the same."""

    coordinates = ("value",)
    makes_dead_letters = False

    def __init__(self, spark: SparkSession, options: Mapping[str, str]) -> None:
        self._spark = spark
        self._options = {"rowsPerBatch": "1000", **options}

    @override
    def check(self) -> None:
        """Nothing outside Spark is needed."""

    @override
    def stream(self) -> DataFrame:
        return self._sort(self._spark.readStream.format("rate-micro-batch").options(**self._options).load())

    @override
    def read_range(self, offsets: OffsetRange) -> DataFrame:
        # RatePerMicroBatchStream writes {"offset": rows so far, "timestamp": ms of the next batch's rows}.
        first = offsets.start["offset"] if offsets.start else 0
        stamp = offsets.start["timestamp"] if offsets.start else int(self._options.get("startTimestamp", "0"))
        rows = self._spark.range(first, offsets.end["offset"]).select(
            F.timestamp_millis(F.lit(stamp)).alias("timestamp"), F.col("id").alias("value")
        )
        return self._sort(rows)

    @override
    def identity(self) -> dict[str, Any]:
        return {"source": "rate", "rowsPerBatch": self._options["rowsPerBatch"]}

    @override
    def size(self, offsets: OffsetRange) -> BatchSize:
        return BatchSize(rows=int(offsets.end["offset"]) - int(offsets.start["offset"] if offsets.start else 0))

    @staticmethod
    def _sort(raw: DataFrame) -> DataFrame:
        return raw.withColumn(OUTCOME, outcome(Outcome.PASSED)).withColumn(LETTER, F.lit(None).cast("string"))
