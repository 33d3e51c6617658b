"""SIGTERM: the micro-batch under way ends, the exit code says how, and the next run goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driver_processes import QUICK, java_environ, under_watch, wait_for_line
from ledger_books import balanced_totals
from pipeline_runs import VARIABLE, Pipelines, file_pipeline, write_lines
from variants import with_limits

import spark_jobs
from sandbox.jars import pyspark_home
from sandbox.spark_cluster import spark_environ
from spark_jobs.contracts.exit_codes import ExitCode

_FILES = 150
_STOPPED = {ExitCode.STOPPED_COMMITTED, ExitCode.STOPPED_ROLLED_BACK}


@pytest.fixture
def long_run(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    """A pipeline with many small micro-batches before it."""
    for number in range(_FILES):
        write_lines(inbox / f"{number:03}.json", *({"id": number * 10 + i} for i in range(10)))
    return file_pipeline("numbers", inbox, pipelines.checkpoints, schema="id INT", streaming={"maxFilesPerTrigger": 1})


def test_the_command_stops_after_the_micro_batch(pipelines: Pipelines, long_run: dict[str, Any]) -> None:
    command = pipelines.command("run", str(pipelines.path(long_run)), *QUICK, **java_environ())
    with under_watch(command) as driver:
        wait_for_line(driver, "event=batch_committed batch=2 ")
        driver.send_signal(signal.SIGTERM)
        _out, err = driver.communicate(timeout=90)
    assert driver.returncode in _STOPPED, err
    assert "Traceback" not in err
    _the_next_run_completes(pipelines, long_run, driver.returncode)


def test_spark_submit_stops_after_the_micro_batch(pipelines: Pipelines, long_run: dict[str, Any]) -> None:
    with under_watch(_submit(pipelines, pipelines.path(long_run))) as submitted:
        wait_for_line(submitted, "event=batch_committed batch=2 ")
        # The scripts of spark-submit end in `exec java`: this is the driver's JVM.
        os.kill(submitted.pid, signal.SIGTERM)
        out, _err = submitted.communicate(timeout=90)
    assert submitted.returncode in _STOPPED, out
    _the_next_run_completes(pipelines, long_run, submitted.returncode)


def _the_next_run_completes(pipelines: Pipelines, config: dict[str, Any], code: int) -> None:
    state, recorded, ended_at = pipelines.rows("SELECT state, exit_code, ended_at FROM etl.pipeline_run")[0]
    assert (state, recorded) == ("stopped", code)
    assert ended_at is not None
    done = pipelines.one("SELECT count(*) FROM etl.batch_tracker")
    assert 3 <= done < _FILES
    assert pipelines.one("SELECT count(*) FROM result") == done * 10
    pipelines.finish(with_limits(config, maxFilesPerTrigger=1000))
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(_FILES * 10, _FILES * 10)]
    assert balanced_totals(pipelines, "numbers")["written_rows"] == _FILES * 10


def _submit(pipelines: Pipelines, pipeline: Path) -> subprocess.Popen[str]:
    package = Path(spark_jobs.__file__).parent
    environ = spark_environ({VARIABLE: pipelines.database.airflow_uri, "PYTHONPATH": str(package.parent)})
    return subprocess.Popen(
        [
            str(pyspark_home() / "bin" / "spark-submit"),
            *QUICK,
            "--conf",
            f"spark.pyspark.python={sys.executable}",
            str(package / "run_pipeline.py"),
            str(pipeline),
        ],
        env=environ,
        # spark-submit sends what Python writes to standard error to standard output.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
