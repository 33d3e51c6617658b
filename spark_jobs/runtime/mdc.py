"""The ids of a run and its micro-batch in the JVM's logs: Spark's ``mdc.*`` properties and log4j's thread context.

Spark puts a job's local properties ``mdc.<name>`` into the thread context (MDC) of the tasks that it starts, on every
executor, under the same names. A thread started later has its starter's properties, Spark's own for the query among
them; the driver's own lines need the thread context itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from spark_jobs.logs.ids import NAMES, Ids

_PREFIX: Final = "mdc."


class JvmIds:
    """Sets the ids for the calling thread's counterpart in the JVM."""

    def __init__(self, spark: SparkSession) -> None:
        self._context = spark.sparkContext
        self._mdc: Any = spark._jvm.org.slf4j.MDC  # type: ignore[union-attr]

    def set(self, ids: Ids) -> None:
        """Let this thread's jobs and lines have these ids, beside those they have."""
        for name, value in ids.items():
            self._context.setLocalProperty(_PREFIX + name, str(value))
            self._mdc.put(_PREFIX + name, str(value))

    def clear(self) -> None:
        """Let this thread's jobs and lines have no ids."""
        for name in NAMES:
            self._context.setLocalProperty(_PREFIX + name, None)  # type: ignore[arg-type]  # None removes it
            self._mdc.remove(_PREFIX + name)


@contextmanager
def jvm_ids(spark: SparkSession, ids: Ids) -> Iterator[JvmIds]:
    """Set the ids for what this thread starts in the block; clear them at its end."""
    jvm = JvmIds(spark)
    jvm.set(ids)
    try:
        yield jvm
    finally:
        # A JVM that has died needs no clearing, and the error that tells of its death must not be replaced.
        with suppress(Py4JError, OSError):
            jvm.clear()
