"""Tasks that Spark runs more than once, on a real cluster: repeated after a failure, or twice at the same time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import VARIABLE, Pipelines, file_pipeline, write_lines

from sandbox.class_archive import quick_java
from sandbox.spark_cluster import SparkCluster, spark_environ
from spark_jobs import faults

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Of two files each: a task for each file.
BATCHES = 2
ROWS = 40
_SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.minTaskRuntime": "1s",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.5",
    # A stage of one task has no other one to compare it with.
    "spark.speculation.task.duration.threshold": "5s",
}

Run = Callable[..., Pipelines]


@pytest.fixture
def run(spark_cluster: SparkCluster, database: Any, tmp_path: Path) -> Run:
    """Return a function that runs a pipeline with faults in its tasks, and insists that it finishes."""
    pipelines = Pipelines(database, tmp_path)
    file = tmp_path / "faults"
    inbox = tmp_path / "in"
    for number in range(2 * BATCHES):
        write_lines(inbox / f"{number}.json", *({"id": number * ROWS + i} for i in range(ROWS)), "broken")

    def submit(strategy: str, points: list[str], action: str, settings: dict[str, str]) -> Pipelines:
        config = file_pipeline(
            "rows",
            inbox,
            pipelines.checkpoints,
            schema="id INT",
            load={"writeStrategy": strategy},
            options={"maxFilesPerTrigger": "2"},
        )
        file.write_text("".join(f"{point} {action}\n" for point in points))
        command = ["spark-submit", "--master", spark_cluster.master_url, "--driver-memory", "512m"]
        for name, value in {
            "spark.driver.host": "127.0.0.1",
            "spark.executor.extraJavaOptions": quick_java(),
            "spark.executor.memory": "512m",
            "spark.ui.enabled": "false",
            # Two files of a few bytes would be one task.
            "spark.sql.files.openCostInBytes": "128m",
            # The faults are the tasks' alone.
            f"spark.executorEnv.{faults.VARIABLE}": str(file),
            **settings,
        }.items():
            command += ["--conf", f"{name}={value}"]
        command += [str(REPOSITORY / "spark_jobs" / "run_pipeline.py"), str(pipelines.path(config))]
        environ = {**spark_environ(), VARIABLE: database.airflow_uri, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert sorted(Path(f"{file}.fired").read_text().splitlines()) == sorted(f"{point} {action}" for point in points)
        return pipelines

    return submit


def _check(pipelines: Pipelines, strategy: str) -> None:
    """Every row once, every dead letter once, the books right, and nothing left of the attempts that lost."""
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(i,) for i in range(2 * BATCHES * ROWS)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 2 * BATCHES
    books = "SELECT source_rows, dead_lettered_rows, written_rows, strategy FROM etl.batch_tracker"
    assert pipelines.rows(books) == BATCHES * [(2 * ROWS + 2, 2, 2 * ROWS, strategy)]
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    assert pipelines.one("SELECT count(*) FROM etl.batch_part") == 0
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []


@pytest.mark.parametrize(
    ("strategy", "points"),
    [
        ("single", ["single.in_copy", "single.before_commit", "single.after_commit"]),
        ("staged", ["staged.in_copy", "staged.before_part_commit", "staged.after_part_commit"]),
        ("two_phase", ["two_phase.in_copy", "two_phase.before_prepare", "two_phase.after_prepare"]),
    ],
)
def test_a_task_that_fails_at_any_point_is_repeated_and_leaves_no_second_copy(
    run: Run, strategy: str, points: list[str]
) -> None:
    pipelines = run(strategy, points, "fail", {"spark.task.maxFailures": str(len(points) + 1)})
    _check(pipelines, strategy)


@pytest.mark.skipif(sys.platform != "linux", reason="the workers are hosts of their own on Linux only")
@pytest.mark.parametrize(
    ("strategy", "point"),
    [
        ("single", "single.before_copy"),
        ("staged", "staged.after_part_commit"),
        ("two_phase", "two_phase.after_prepare"),
    ],
)
def test_a_speculative_copy_of_a_task_that_hangs_leaves_no_second_copy(run: Run, strategy: str, point: str) -> None:
    _check(run(strategy, [point], "stop", _SPECULATION), strategy)
