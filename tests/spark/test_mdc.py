"""The ids in the JVM: Spark hands them on to a job's tasks, and they are gone with the run."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from spark_jobs.logs.ids import NAMES
from spark_jobs.runtime.mdc import jvm_ids

IDS = {"pipeline": "orders", "run": "r-1", "epoch": 2, "query": "q"}


def seen_by_a_task(spark: SparkSession) -> dict[str, Any]:
    """Return the ids that a Python task of a job has."""

    def ids(_: int) -> list[tuple[str, Any]]:
        task = TaskContext.get()
        assert task is not None
        return [(name, task.getLocalProperty(f"mdc.{name}")) for name in names]

    names = NAMES
    [found] = spark.sparkContext.parallelize([0], 1).map(ids).collect()
    return {name: value for name, value in found if value is not None}


def on_the_thread(spark: Any) -> dict[str, Any]:
    mdc = spark._jvm.org.slf4j.MDC
    return {name: value for name in NAMES if (value := mdc.get(f"mdc.{name}")) is not None}


def test_tasks_and_the_drivers_thread_have_the_ids(spark: SparkSession) -> None:
    texts = {name: str(value) for name, value in IDS.items()}
    with jvm_ids(spark, IDS) as jvm:
        assert seen_by_a_task(spark) == on_the_thread(spark) == texts
        jvm.set({"batch": 3})
        assert seen_by_a_task(spark) == on_the_thread(spark) == {**texts, "batch": "3"}
    assert seen_by_a_task(spark) == on_the_thread(spark) == {}


def test_they_are_gone_after_an_error(spark: SparkSession) -> None:
    with pytest.raises(ValueError, match="on the way"), jvm_ids(spark, IDS):
        raise ValueError("on the way")
    assert on_the_thread(spark) == {}
