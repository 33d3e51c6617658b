"""The sandbox's own standalone cluster: jobs really run on both workers."""

from __future__ import annotations

import subprocess

from sandbox.spark_cluster import spark_environ

_JOB = """
import os, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
while len(spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) < 3:
    time.sleep(0.1)
def parent(_):
    time.sleep(1)
    yield os.environ["SPARK_EXECUTOR_DIRS"]
print("executors", len(set(spark.sparkContext.parallelize(range(2), 2).mapPartitions(parent).collect())))
"""


def test_a_job_runs_on_two_workers(spark_cluster, tmp_path):
    job = tmp_path / "job.py"
    job.write_text(_JOB)
    submit = [spark_environ()["SPARK_HOME"] + "/bin/spark-submit", "--master", spark_cluster.master_url]
    settings = [
        "--conf",
        "spark.ui.enabled=false",
        "--conf",
        "spark.driver.host=127.0.0.1",
        "--executor-memory",
        "512m",
    ]
    done = subprocess.run([*submit, *settings, job], env=spark_environ(), capture_output=True, text=True, check=False)
    assert "executors 2" in done.stdout, done.stderr
