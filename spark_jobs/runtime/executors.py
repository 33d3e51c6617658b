"""Do the executors have what the writers need? Asked when tasks have failed: a healthy run does not pay for it.

A task that lacks something fails when it imports its writer, before it has read or written a row.
"""

from __future__ import annotations

import importlib
import socket
import sys
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import ExecutorsNotReadyError
from spark_jobs.runtime.spark_errors import telling_line

_MODULES = ("pyarrow", "adbc_driver_postgresql", "adbc_driver_manager", "spark_jobs.sinks.single")
_MOST_TASKS = 64
# Spark that ends, or loses its executors, says nothing about what they have: whoever asks knows a better reason.
_NO_PROOF = ("ExecutorLostFailure", "SparkContext was shut down", "stopped SparkContext", "cancelled", "Py4JNetwork")
_CURE = (
    "Give the executors an environment with Python {major}.{minor}, pyarrow and adbc-driver-postgresql: pack one with "
    "venv-pack and start with --archives environment.tar.gz#environment and "
    "spark.pyspark.python=./environment/bin/python, or install them on the nodes or in the image; spark_jobs itself "
    "travels by --py-files. See docs/guides/cluster.md"
)


def require_ready_executors(spark: SparkSession) -> None:
    """Run a task on the executors that imports what the writers need; return when nothing is missing.

    :raises ExecutorsNotReadyError: naming what is missing, on which host, and the cure.
    """
    tasks = min(spark.sparkContext.defaultParallelism, _MOST_TASKS)
    try:
        answers = spark.sparkContext.parallelize(range(tasks), tasks).map(_probe).collect()
    except Exception as error:
        if any(word in str(error) for word in _NO_PROOF):
            return
        raise _not_ready(telling_line(error)) from error
    problems = sorted({f"{answer['host']}: {missing}" for answer in answers for missing in answer["missing"]})
    if problems:
        raise _not_ready("; ".join(problems))


def _not_ready(found: str) -> ExecutorsNotReadyError:
    return ExecutorsNotReadyError(
        "The executors cannot run the writers",
        found=found,
        expected=f"Python {sys.version_info.major}.{sys.version_info.minor} with {', '.join(_MODULES)}",
        cure=_CURE.format(major=sys.version_info.major, minor=sys.version_info.minor),
    )


def _probe(_number: int) -> dict[str, Any]:
    missing = []
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever an import raises is the answer
            missing.append(f"{name} ({type(error).__name__}: {error})")
    return {"host": socket.gethostname(), "missing": missing}
