"""Which row made a batch fail, and in which expression: found by reading the batch's range again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.classic.column import Column as ClassicColumn

from spark_jobs.contracts.config import FilterTransform, SelectTransform
from spark_jobs.contracts.config.transforms import Transform
from spark_jobs.contracts.errors import DataError
from spark_jobs.rows import SOURCE, data_columns, json_text, passed
from spark_jobs.runtime.flow import Flow
from spark_jobs.sources.base import OffsetRange
from spark_jobs.transforms import registry

_LONGEST_ROW = 1000


@dataclass(frozen=True, slots=True)
class FailedExpression:
    """An expression of the pipeline that fails on a row."""

    path: str
    text: str


def expression_failed(error: BaseException) -> str | None:
    """Return Spark's own words when an SQL expression failed on a row; None for any other failure."""
    found = _chain(error)
    for link in found:
        if isinstance(link, PySparkException):
            state = link.getSqlState() or ""
            if state.startswith("22") or link.getCondition() == "USER_RAISED_EXCEPTION":
                return str(link).splitlines()[0]
    return None


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def explain(spark: SparkSession, flow: Flow, offsets: OffsetRange, words: str) -> DataError:
    """Return the error that names expression and row."""
    frame = flow.past_source(offsets)
    for number, transform in enumerate(flow.stateless):
        for failed, row in _failures(spark, frame, transform, number):
            return DataError(
                f"The expression {failed.text} ({failed.path}) fails on a row",
                found=f"{words} Row: {row}",
                expected="an expression that holds for every row",
                cure="Use try_cast, try_divide or a filter before it, or correct the row at its source; run again: "
                "nothing of the batch was written",
            )
        frame = registry.apply(frame, transform)
    return DataError(
        "An SQL expression of the pipeline fails on a row",
        found=words,
        cure="Use try_cast, try_divide or a filter before it; then run again: nothing of the batch was written",
    )


def _failures(
    spark: SparkSession, frame: DataFrame, transform: Transform, number: int
) -> list[tuple[FailedExpression, str]]:
    shown = json_text(F.struct(F.col(SOURCE).alias("source"), *(_column(name) for name in data_columns(frame))))
    for failed in _expressions(transform, number):
        # `struct` is never null, so that a null tells a failure from a null result.
        fails = _tried(spark, F.struct(F.expr(failed.text))).isNull()
        rows: list[Any] = frame.filter(passed()).filter(fails).select(shown.alias("row")).limit(1).collect()
        if rows:
            return [(failed, str(rows[0]["row"])[:_LONGEST_ROW])]
    return []


def _expressions(transform: Transform, number: int) -> list[FailedExpression]:
    if isinstance(transform, SelectTransform):
        return [
            FailedExpression(f"transforms[{number}].parameters.columns.{name}", text)
            for name, text in transform.columns.items()
        ]
    if isinstance(transform, FilterTransform):
        return [FailedExpression(f"transforms[{number}].parameters.condition", transform.condition)]
    return []


def _column(name: str) -> Column:
    return F.col("`" + name.replace("`", "``") + "`")


def _tried(spark: SparkSession, column: Column) -> Column:
    # Spark's own try_* functions are made of this expression; it has no name in SQL.
    jvm: Any = spark._jvm
    bridge = jvm.org.apache.spark.sql.classic.ExpressionUtils
    expression = bridge.expression(column._jc)
    return ClassicColumn(bridge.column(jvm.org.apache.spark.sql.catalyst.expressions.TryEval(expression)))
