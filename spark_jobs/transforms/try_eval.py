"""Expressions that fail on a row: told from other failures, and evaluated so that the failure is a null."""

from __future__ import annotations

from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.classic.column import Column as ClassicColumn

from spark_jobs.rows import SOURCE, passed


def expression_failed(error: BaseException) -> str | None:
    """Return Spark's own words when an SQL expression failed on a row; None for any other failure."""
    for link in _chain(error):
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


def tried(jvm: Any, column: Column) -> Column:
    """Return a struct with ``column`` as ``v``; null where it fails. A result that is null is a struct that holds it.

    Only inside a branch of a CASE: what is evaluated for every row Spark may evaluate beforehand, out of this reach,
    because another column has the same part.
    """
    return try_eval(jvm, F.struct(column.alias("v")))


def try_eval(jvm: Any, column: Column) -> Column:
    """Return ``column``, or null where it fails; see :func:`tried`."""
    # Spark's own try_* functions are made of this expression; it has no name in SQL.
    bridge = jvm.org.apache.spark.sql.classic.ExpressionUtils
    expression = bridge.expression(column._jc)
    return ClassicColumn(bridge.column(jvm.org.apache.spark.sql.catalyst.expressions.TryEval(expression)))


def still_on_its_way() -> Column:
    """Return :func:`passed` as a condition that Spark cannot decide beforehand, even where all rows have passed.

    The branch behind a condition that is known to be true would be no branch any more.
    """
    return passed() & (F.pmod(F.hash(F.col(SOURCE)), F.lit(2)) < 2)
