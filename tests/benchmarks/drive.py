"""A process of its own, with a Spark driver in it.

``drive.py MASTER PIPELINE CONNECTION`` runs a pipeline, ``--no-op MASTER FOLDER`` reads rows into Spark's no-op sink,
``--data FOLDER ROWS`` makes them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from peers import run_pipeline
from pyspark.sql import SparkSession
from rows import SCHEMA, parquet

from spark_jobs.runtime.session import DEFAULTS

# A heap that a million rows fill already: what a run of twenty million needs beyond it is what grows.
_SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "600m",
    "spark.executor.memory": "600m",
    "spark.ui.enabled": "false",
    "spark.executorEnv.PYTHONPATH": os.environ.get("PYTHONPATH", ""),
}


def _session(master: str) -> SparkSession:
    builder: Any = SparkSession.builder.master(master).appName("bench driver")
    for name, value in {**DEFAULTS, **_SETTINGS}.items():
        builder = builder.config(name, value)
    session: SparkSession = builder.getOrCreate()
    return session


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1] == "--data":
        parquet(_session("local[2]"), Path(sys.argv[2]), int(sys.argv[3]))
        return
    if sys.argv[1] == "--no-op":
        rows = _session(sys.argv[2]).read.schema(SCHEMA).parquet(sys.argv[3])
        rows.coalesce(1).write.format("noop").mode("append").save()
        return
    master, file, connection = sys.argv[1:]
    run_pipeline(_session(master), Path(file), connection)


if __name__ == "__main__":
    main()
