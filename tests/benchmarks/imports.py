"""What importing an operator or sensor adds to Airflow's own import, each in a process of its own.

Of compiled modules, as those of an installed package are from their second import on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from statistics import median
from tempfile import TemporaryDirectory

from report import Figure

from airflow_etl_provider.get_provider_info import get_provider_info

_GOAL_MS = 100
# What Airflow's processes have imported before they read a DAG file, and what the tasks are made of.
_OWN = """
import sys, time
import airflow.sdk, airflow.triggers.base
from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
own = set(sys.modules)
began = time.perf_counter()
import {module}
print(time.perf_counter() - began, sorted({{"pyspark", "pandas"}} & (set(sys.modules) - own)))
"""


def figures(rounds: int) -> Iterator[Figure]:
    """Measure, and yield the milliseconds of each module."""
    info = get_provider_info()
    lists = chain.from_iterable(one["python-modules"] for kind in ("operators", "sensors") for one in info[kind])
    with TemporaryDirectory() as compiled:
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        for module in lists:
            _milliseconds(module, environ)
            ms = median(_milliseconds(module, environ) for _ in range(rounds))
            yield Figure(f"import of {module}", ms, "ms", f"{_GOAL_MS} ms", ms / _GOAL_MS, 1.0, less=True)


def _milliseconds(module: str, environ: dict[str, str]) -> float:
    command = [sys.executable, "-c", _OWN.format(module=module)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
    said = done.stdout.splitlines()[-1]
    seconds, _, heavy = said.partition(" ")
    assert heavy == "[]", (module, heavy)
    return float(seconds) * 1000
