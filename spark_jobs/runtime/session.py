"""The Spark session of a run, and what it must not be told otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from spark_jobs.contracts.config.secret_values import SPARK_REDACTION
from spark_jobs.contracts.errors import ConfigError

DEFAULTS = {
    # Event times and casts to DATE must not depend on the machine that happens to run the driver.
    "spark.sql.session.timeZone": "UTC",
    # Arrow batches are bounded by their rows: to bound their bytes, Spark asks each column for its size after each row,
    # a quarter of the time of an append. Rows are so few that even records of a megabyte fit into memory; what an
    # executor writes is put together again (spark_jobs/sinks/gathering.py).
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(2**31 - 1),
    # Else pyspark looks up its caller with each expression, to name a line of ours in an error: a third of the time it
    # takes to put a query together.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
    # Values that look like a secret are hidden already; these are our own keys.
    "spark.redaction.regex": SPARK_REDACTION,
}
"""What a user may set otherwise, by ``--conf`` or for the session."""
_ARROW = {key for key in DEFAULTS if ".arrow." in key}
# What would lose or double rows.
_REQUIRED = {
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.ansi.enabled": "true",
}
_SHUFFLE = "spark.sql.shuffle.partitions"


def get_session(name: str, conf: Mapping[str, str], *, master: str | None = None) -> SparkSession:
    """Return the Spark session: the one that ``spark-submit`` configured, or a local one.

    :param conf: settings of the command line; they win over the defaults here.
    :raises ConfigError: a setting would lose or double rows.
    """
    builder = SparkSession.builder.appName(name)
    given = _submitted()
    where = conf.get("spark.master") or given.get("spark.master", None) or master or "local[*]"
    if where.startswith("local"):
        # Workers would otherwise run whatever `python3` the PATH has.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for key, value in conf.items():
        builder = builder.config(key, value)
    for key, value in defaults_beside(key for key in DEFAULTS if key in conf or given.contains(key)).items():
        builder = builder.config(key, value)
    spark = builder.master(where).getOrCreate()
    _check(spark)
    if "PYSPARK_GATEWAY_PORT" in os.environ and not given.contains("spark.log.level"):
        # Spark's INFO would bury the one line per micro-batch; --conf spark.log.level=INFO brings it back.
        spark.sparkContext.setLogLevel("WARN")
    if _SHUFFLE not in conf and not given.contains(_SHUFFLE):
        # Spark's 200 make 200 state stores of every aggregation; a checkpoint keeps what it began with.
        spark.conf.set(_SHUFFLE, str(max(spark.sparkContext.defaultParallelism, 1)))
    return spark


def defaults_beside(chosen: Iterable[str]) -> dict[str, str]:
    """Return the defaults for what was not chosen."""
    left = set(DEFAULTS) - set(chosen)
    if not left >= _ARROW:
        # Rows that another bound lets through need Spark's bound in bytes.
        left -= _ARROW
    return {key: value for key, value in DEFAULTS.items() if key in left}


def _submitted() -> SparkConf:
    """Return what ``spark-submit`` was told; empty when there was none."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        # Before the first session Python knows nothing of the JVM that started it, nor of its settings.
        SparkContext._ensure_initialized()
    return SparkConf()


def _check(spark: SparkSession) -> None:
    for key, required in _REQUIRED.items():
        found = spark.conf.get(key, None)
        if found is not None and found.lower() != required:
            raise ConfigError(
                f"The Spark setting {key} would lose rows without a word",
                found=found,
                expected=required,
                cure="Remove the setting",
            )


def hadoop_credentials(spark: SparkSession, alias: str) -> str | None:
    """Return an entry of the Hadoop credential provider that ``spark-submit`` configured; None without one."""
    conf: Any = spark._jsc.hadoopConfiguration()
    if not conf.get("hadoop.security.credential.provider.path"):
        return None
    found = conf.getPassword(alias)
    return None if found is None else "".join(found)
