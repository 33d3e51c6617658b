"""``load.batchColumn``: each row of the target names the micro-batch that wrote it.

Batch ids begin again with every checkpoint, so the value names query and batch: ``<query id>/<batch id>``.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from spark_jobs.contracts.errors import ConfigError, TargetMismatchError
from spark_jobs.contracts.tracker.records import BatchIdentity
from spark_jobs.sinks.target import Target

_LONGEST = 64
"""A query's id has 36 characters, a batch's id at most 19."""
_TEXTS = ("text", "character varying")


def batch_value(identity: BatchIdentity) -> str:
    """Return what the rows of a micro-batch hold in the column."""
    return f"{identity.query_id}/{identity.batch_id}"


def with_batch(rows: DataFrame, column: str | None, identity: BatchIdentity) -> DataFrame:
    """Return the rows with the column; unchanged where the pipeline has none."""
    return rows if column is None else rows.withColumn(column, F.lit(batch_value(identity)))


def with_batch_field(schema: StructType, column: str | None) -> StructType:
    """Return the schema with the column at its end.

    :raises ConfigError: the query has a column of that name: whose values they are must not be a question.
    """
    if column is None:
        return schema
    # Spark does not tell upper from lower case: with the other spelling one would replace the other.
    same = [name for name in schema.names if name.lower() == column.lower()]
    if same:
        raise ConfigError(
            "load.batchColumn is a column of the result as well",
            found=", ".join(same),
            expected="a name that no column of the result has: the pipeline fills it",
            cure="Give it another name, for example etl_batch",
        )
    return StructType([*schema.fields, StructField(column, StringType())])


def require_batch_column(target: Target, column: str | None) -> None:
    """Return if the table's column takes every batch's name.

    :raises TargetMismatchError: it is of another type, or too short: each row would be refused.
    """
    for found in target.columns:
        if found.name != column:
            continue
        short = found.type.precision is not None and found.type.precision < _LONGEST
        if found.type.base not in _TEXTS or short:
            raise TargetMismatchError(
                f"The table {target.table} cannot hold load.batchColumn",
                found=f"column {column} is {found.declared}",
                expected=f"text, or varchar of {_LONGEST} characters or more: <query id>/<batch id>",
                cure="Change the column's type, or name another column",
            )
