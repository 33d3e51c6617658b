"""A short streaming job, run for the Java classes that it loads (see ``class_archive``); it keeps nothing.

It does once what the runs of the suites do: a file source, a window with a watermark, Python workers fed with Arrow,
Parquet, and all of it both with and without generated code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F


def _unchanged(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def _run(spark: SparkSession, folder: Path) -> None:
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "0.json").write_text('{"id": 1, "at": "2026-01-01T00:00:00Z"}\n')

    def write(rows: DataFrame, batch_id: int) -> None:
        rows.groupBy("id").count().mapInArrow(_unchanged, "id int, count long").collect()
        out = str(folder / f"out-{batch_id}")
        rows.write.parquet(out)
        spark.read.parquet(out).collect()

    rows = spark.readStream.schema("id INT, at TIMESTAMP").json(str(folder / "in")).withWatermark("at", "1 hour")
    counted = rows.groupBy(F.window("at", "1 hour"), "id").count().select("id", "count")
    writer = counted.writeStream.outputMode("update").trigger(availableNow=True).foreachBatch(write)
    writer.option("checkpointLocation", str(folder / "checkpoint")).start().awaitTermination()


def main() -> None:
    """Run the job in the folder that the command line names."""
    spark = SparkSession.builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    _run(spark, Path(sys.argv[1]) / "generated")
    spark.conf.set("spark.sql.codegen.wholeStage", "false")
    spark.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
    _run(spark, Path(sys.argv[1]) / "interpreted")
    spark.stop()


if __name__ == "__main__":
    main()
