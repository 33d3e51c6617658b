"""``select``: output columns as SQL expressions over the columns so far. Also renames and casts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.rows import CARRIED, passed

_BARE_COLUMN = re.compile(r"\s*(?:`[^`]+`|[A-Za-z_][A-Za-z0-9_]*)\s*")


def select(df: DataFrame, columns: Mapping[str, str]) -> DataFrame:
    """Replace the data columns by ``columns`` (name → SQL expression).

    Expressions are evaluated for rows that are still on their way only: a dead letter's columns are not its data.
    """
    chosen = [_computed(expression).alias(name) for name, expression in columns.items()]
    return df.select(*chosen, *[name for name in CARRIED if name in df.columns])


def is_bare_column(expression: str) -> bool:
    """Tell whether an expression is only a column's name, which cannot fail."""
    return _BARE_COLUMN.fullmatch(expression) is not None


def _computed(expression: str) -> Column:
    # A bare column stays what it is, because only so does it keep the watermark's mark for an aggregation behind it.
    if is_bare_column(expression):
        return F.expr(expression)
    return F.when(passed(), F.expr(expression))
