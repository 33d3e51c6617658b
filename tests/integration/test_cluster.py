"""A real standalone cluster of two workers: what its executors lack is named, and nothing is written; what cures it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import VARIABLE, Pipelines, aggregation, file_pipeline, write_lines

from sandbox.class_archive import quick_java
from sandbox.spark_cluster import SparkCluster, spark_environ
from spark_jobs.contracts.exit_codes import ExitCode

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# What docs/guides/cluster.md names, in the versions of the driver.
PACKAGES = ("pyarrow", "adbc-driver-postgresql", "adbc-driver-manager")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without any package: what a cluster's nodes have."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def packed_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with what the executors need, packed."""
    from importlib.metadata import version

    folder = tmp_path_factory.mktemp("packed")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    archive = folder / "environment.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(environment, arcname=".")
    return archive


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``spark_jobs`` as ``--py-files`` ships it."""
    path = tmp_path_factory.mktemp("package") / "spark_jobs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((REPOSITORY / "spark_jobs").rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(REPOSITORY))
    return path


@dataclass
class Submit:
    """``spark-submit run_pipeline.py`` to the cluster, from a driver with the whole installation."""

    cluster: SparkCluster
    package: Path
    environ: dict[str, str]

    def __call__(self, pipeline: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            "spark-submit", "--master", self.cluster.master_url, "--py-files", str(self.package),
            "--conf", "spark.driver.host=127.0.0.1", "--conf", f"spark.pyspark.driver.python={sys.executable}",
            "--conf", "spark.executor.memory=1g", "--conf", "spark.ui.enabled=false",
            "--conf", f"spark.executor.extraJavaOptions={quick_java()}",
            *options, str(REPOSITORY / "spark_jobs" / "run_pipeline.py"), str(pipeline),
        ]  # fmt: skip
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def submit(spark_cluster: SparkCluster, package: Path, database: Any) -> Submit:
    environ = {**spark_environ(), VARIABLE: database.airflow_uri, "PYTHONPATH": str(REPOSITORY)}
    del environ["PYSPARK_PYTHON"]
    return Submit(spark_cluster, package, environ)


@pytest.fixture
def arrivals(tmp_path: Path) -> Path:
    for number in range(4):
        rows = ({"id": number * 100 + i, "shop": f"s{i % 3}"} for i in range(100))
        write_lines(tmp_path / "in" / f"{number}.json", *rows, "broken")
    return tmp_path / "in"


def test_executors_that_lack_something_are_refused_before_data_moves(
    submit: Submit, bare_python: Path, arrivals: Path, database: Any, tmp_path: Path
) -> None:
    pipelines = Pipelines(database, tmp_path)
    config = file_pipeline("rows", arrivals, pipelines.checkpoints, schema="id INT, shop STRING")
    done = submit(pipelines.path(config), "--conf", f"spark.pyspark.python={bare_python}")
    assert done.returncode == ExitCode.EXECUTORS_NOT_READY, done.stderr[-3000:]
    # spark-submit hands on what the driver says on either stream as its standard output.
    message = next(line for line in done.stdout.splitlines() if line.startswith("Error: "))
    assert "pyarrow" in message
    assert "--archives" in message
    assert pipelines.one("SELECT count(*) FROM result") == 0
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    assert pipelines.one("SELECT exit_code FROM etl.pipeline_run") == ExitCode.EXECUTORS_NOT_READY


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_packed_environment_gives_the_executors_what_they_lack(
    submit: Submit, packed_environment: Path, arrivals: Path, database: Any, tmp_path: Path, strategy: str
) -> None:
    pipelines = Pipelines(database, tmp_path)
    options = ["--archives", f"{packed_environment}#environment"]
    options += ["--conf", "spark.pyspark.python=./environment/bin/python"]
    load = {"writeStrategy": strategy}
    config = file_pipeline("rows", arrivals, pipelines.checkpoints, schema="id INT, shop STRING", load=load)
    done = submit(pipelines.path(config), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(400, 400)]
    assert pipelines.rows("SELECT source_rows, dead_lettered_rows, strategy FROM etl.batch_tracker") == [
        (404, 4, strategy)
    ]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 4


def test_an_aggregation_with_its_second_look_runs_on_the_cluster(
    submit: Submit, packed_environment: Path, arrivals: Path, database: Any, tmp_path: Path
) -> None:
    pipelines = Pipelines(database, tmp_path)
    config = file_pipeline(
        "totals",
        arrivals,
        pipelines.checkpoints,
        schema="id INT, shop STRING",
        transforms=[aggregation(groupByColumns="shop", aggregations="n:count")],
        load={"writeMode": "upsert", "keys": "shop"},
        streaming={"outputMode": "update"},
    )
    options = ["--archives", f"{packed_environment}#environment"]
    options += ["--conf", "spark.pyspark.python=./environment/bin/python"]
    done = submit(pipelines.path(config), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert pipelines.rows("SELECT shop, n FROM result ORDER BY 1") == [("s0", 136), ("s1", 132), ("s2", 132)]
    assert pipelines.rows("SELECT passed_rows, dead_lettered_rows FROM etl.batch_tracker") == [(400, 4)]
