"""A driver that has started its JVM ahead and waits on stdin for its order. Started as a session of its own.

The order is one line of JSON, ``{"pipeline": path, "faults": text}``, or with a ``replay`` or a ``reprocess`` instead
of the path; the answer is one line as well: the run's exit code and error. Starting a JVM takes most of a short run's
time: this one does it while the driver before it still runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

_SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "512m",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.streaming.stateStore.maintenanceInterval": "1h",
}


def _session() -> Any:
    from pyspark.sql import SparkSession

    from spark_jobs.runtime.session import DEFAULTS

    builder: Any = SparkSession.builder.master(os.environ.get("STANDBY_MASTER", "local[2]")).appName("standby")
    for name, value in {**DEFAULTS, **_SETTINGS, "spark.jars": os.environ.get("STANDBY_JARS", "")}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _workers_ready(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import spark_jobs.sinks.single  # noqa: F401

    return batches


def main() -> int:
    """Wait for the order and carry it out."""
    from spark_jobs.faults import DRIVER_VARIABLE, VARIABLE

    os.environ[DRIVER_VARIABLE] = str(os.getpgid(0))
    spark = _session()
    from spark_jobs.contracts.credentials import resolve_database
    from spark_jobs.contracts.replay import ReplayRequest
    from spark_jobs.contracts.reprocess_batches import ReprocessRequest
    from spark_jobs.run_pipeline import run_file, run_replay, run_reprocess
    from spark_jobs.runtime.stopping import Stop

    # As the sinks do it: an RDD's workers are others.
    spark.range(0, 2, 1, 2).mapInArrow(_workers_ready, "id long").collect()
    print("READY", flush=True)
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return 0
    if order.get("faults"):
        Path(os.environ[VARIABLE]).write_text(order["faults"] + "\n")
    if "replay" in order:
        replay = ReplayRequest.model_validate(order["replay"])
        database = resolve_database("warehouse")
        ended = run_replay(replay, database, tracker_schema="etl", stop=Stop(), session=lambda: spark)
    elif "reprocess" in order:
        wanted = ReprocessRequest.model_validate(order["reprocess"])
        database = resolve_database("warehouse")
        ended = run_reprocess(wanted, database, tracker_schema="etl", stop=Stop(), session=lambda: spark)
    else:
        path = Path(order["pipeline"])
        ended = run_file(path, {}, resume="none", tracker_schema="etl", stop=Stop(), session=lambda: spark)
    print(json.dumps({"exit_code": int(ended.exit_code), "error": str(ended.error or "")}), flush=True)
    return int(ended.exit_code)


if __name__ == "__main__":
    # The JVM goes with its driver; nothing is waited for.
    code = main()
    sys.stdout.flush()
    os._exit(code)
