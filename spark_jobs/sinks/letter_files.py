"""Dead letters as Parquet files, on any file system that Spark can reach: one set of files for each micro-batch.

A batch's files lie in a folder of their own, whose name is the same when the batch is done again: it replaces them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import BinaryType, DataType, LongType, StringType, StructField, StructType, TimestampType
from typing_extensions import override

from spark_jobs.contracts.config.enumerations import LetterPartitions
from spark_jobs.contracts.errors import LettersNotPublishedError
from spark_jobs.sinks.letter_copy import HEADERS, LetterCopy, LettersBatch
from spark_jobs.sinks.letter_rows import file_rows

_TEXT = StringType()
_COLUMNS: Mapping[str, DataType] = {
    "dead_letter_id": _TEXT,
    "pipeline_id": _TEXT,
    "query_id": _TEXT,
    "batch_id": LongType(),
    "stage": _TEXT,
    "error_class": _TEXT,
    "sqlstate": _TEXT,
    "message": _TEXT,
    "column_name": _TEXT,
    "constraint_name": _TEXT,
    "raw_key": BinaryType(),
    "raw_value": BinaryType(),
    "raw_headers": HEADERS,
    "parsed_row": _TEXT,
    "source": _TEXT,
    "event_time": TimestampType(),
    "attempt": LongType(),
    "first_failed_at": TimestampType(),
    "last_failed_at": TimestampType(),
}


class LetterFiles(LetterCopy):
    """A folder.

    :param options: of Spark's Parquet writer and of the file system, secrets among them; never shown.
    """

    schema = StructType([StructField(name, kind) for name, kind in _COLUMNS.items()])
    make_rows = staticmethod(file_rows)

    def __init__(
        self, spark: SparkSession, folder: str, partitions: LetterPartitions, options: Mapping[str, str]
    ) -> None:
        self._spark = spark
        self._folder = folder.rstrip("/") or "/"
        self._partitions = partitions
        self._options = dict(options)

    @property
    @override
    def place(self) -> str:
        return f"the folder {self._folder}"

    @override
    def check(self) -> None:
        probe = f"{self._folder}/_written-{uuid.uuid4()}"
        try:
            path, files = self._reached(probe)
            files.create(path, True).close()
            files.delete(path, False)
        except Py4JJavaError as error:
            raise LettersNotPublishedError(
                f"{self.place} of the dead letters cannot be written to",
                found=str(error.java_exception.getMessage() or error.java_exception.getClass().getName()),
                expected="dlqConfig.bucketPath: a folder that Spark may make, write to and delete in",
                cure="Check the path, its scheme (is the file system's connector on the class path?) and the "
                "credentials; the run has not begun",
            ) from error

    @override
    def write(self, rows: DataFrame, batch: LettersBatch) -> None:
        rows.write.mode("overwrite").options(**self._options).parquet(self.leaf(batch))

    @override
    def withdraw(self, batch: LettersBatch) -> None:
        # Whoever has changed `partitionBy` since has changed the folder.
        for partitions in LetterPartitions:
            path, files = self._reached(self.leaf(batch, partitions))
            if files.exists(path):
                files.delete(path, True)

    def leaf(self, batch: LettersBatch, partitions: LetterPartitions | None = None) -> str:
        """Return the folder of a batch's files."""
        key = batch.identity
        match partitions or self._partitions:
            case LetterPartitions.PIPELINE:
                # The characters of a pipeline's id need no escape; others' do.
                divided = f"pipeline={quote(key.pipeline_id, safe='')}"
            case LetterPartitions.HOUR:
                divided = f"date={batch.planned_at:%Y-%m-%d}/hour={batch.planned_at:%H}"
            case _:
                divided = f"date={batch.planned_at:%Y-%m-%d}"
        return f"{self._folder}/{divided}/query={key.query_id}/batch={key.batch_id}"

    def _reached(self, name: str) -> tuple[Any, Any]:
        jvm: Any = self._spark._jvm
        path = jvm.org.apache.hadoop.fs.Path(name)
        conf = jvm.org.apache.hadoop.conf.Configuration(self._spark._jsc.hadoopConfiguration())
        for option, value in self._options.items():
            conf.set(option, value)
        return path, path.getFileSystem(conf)
