"""``filter``: rows for which the SQL condition is not true leave, counted."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.rows import OUTCOME, Outcome, outcome, passed


def filter_rows(df: DataFrame, condition: str) -> DataFrame:
    """Mark rows for which ``condition`` is false or NULL as filtered; they stay in the DataFrame to be counted."""
    leaves = F.when(passed(), ~F.coalesce(F.expr(condition), F.lit(False))).otherwise(F.lit(False))
    return df.withColumn(OUTCOME, F.when(leaves, outcome(Outcome.FILTERED)).otherwise(F.col(OUTCOME)))
