"""Of a task that has ended early Spark does not make the rest of the rows, and loses nothing of the next one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import Observation
from pyspark.sql import functions as F

from spark_jobs.contracts.errors import TransientError
from spark_jobs.sinks.parts import ALREADY_THERE, REPORT_SCHEMA, STAGED, PartReport, in_task

ROWS = 3_000_000


def _work(ends: str) -> Callable[[Iterator[pa.RecordBatch], int, int], PartReport]:
    # The workers do not know this module: what they run must be made here.
    def work(batches: Iterator[pa.RecordBatch], part: int, attempt: int) -> PartReport:
        report = PartReport(part, attempt)
        if ends == "there":
            report.state = ALREADY_THERE
            return report
        report.written = next(batches).num_rows
        if ends == "broken":
            raise TransientError("The task", found="an error", expected="none", cure="none")
        if ends == "refused":
            report.fail("23514", "a check")
        else:
            report.written += sum(batch.num_rows for batch in batches)
        return report

    return work


def _done(spark: Any, ends: str, parts: int) -> tuple[list[PartReport], int]:
    made = Observation()
    rows = spark.range(0, ROWS, 1, parts).select("id", F.sha2(F.col("id").cast("string"), 512).alias("text"))
    rows = rows.observe(made, F.count(F.lit(1)).alias("rows"))
    reports = PartReport.read(row.asDict() for row in rows.mapInArrow(in_task(_work(ends)), REPORT_SCHEMA).collect())
    return reports, made.get["rows"]


@pytest.mark.parametrize(("ends", "state"), [("refused", "23514"), ("broken", "TransientError"), ("there", "")])
def test_rows_that_a_task_has_left_are_not_made(spark: Any, ends: str, state: str) -> None:
    for parts in (1, 3):
        reports, made = _done(spark, ends, parts)
        assert [report.sqlstate for report in reports] == [state] * parts
        assert sum(report.written for report in reports) < made < ROWS / 2
    reports, made = _done(spark, "all", 2)
    assert [(report.state, report.written) for report in reports] == [(STAGED, ROWS // 2)] * 2
    assert made == ROWS
