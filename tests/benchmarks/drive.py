"""A driver of its own on the benchmark's cluster: ``drive.py CONNECTION FOLDER DATA STRATEGY``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from peers import run_bench_pipeline
from pyspark.sql import SparkSession


def main() -> None:
    """Run the pipeline once."""
    connection, folder, data, strategy = sys.argv[1:]
    builder: Any = SparkSession.builder.master(os.environ["BENCH_MASTER"]).appName("bench driver")
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.executor.memory": "1g",
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    run_bench_pipeline(builder.getOrCreate(), connection, Path(folder), Path(data), strategy)


if __name__ == "__main__":
    main()
