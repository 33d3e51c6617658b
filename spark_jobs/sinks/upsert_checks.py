"""What an upsert's settings demand of the query."""

from __future__ import annotations

from pyspark.sql.types import BooleanType, StructType

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.sinks.merge_sql import MergeRule


def written_columns(schema: StructType, rule: MergeRule) -> StructType:
    """Return the columns of the query that are written: all but the deletion marker.

    :raises ConfigError: a column that the rule names is not there, or the marker is not BOOLEAN.
    """
    names = [field.name for field in schema.fields]
    wanted = [("orderColumn", rule.order_column), ("deleteMarker", rule.delete_marker)]
    wanted += [("updateColumns", column) for column in rule.update_columns]
    for setting, column in wanted:
        if column is not None and column not in names:
            raise ConfigError(
                f"load.{setting} names a column that the query does not have",
                found=column,
                expected=f"one of {', '.join(names)}",
                cure="Correct the name, or select the column",
            )
    marker = rule.delete_marker
    if marker is None:
        return schema
    if not isinstance(schema[marker].dataType, BooleanType):
        raise ConfigError(
            "load.deleteMarker is no BOOLEAN column",
            found=f"{marker} {schema[marker].dataType.simpleString().upper()}",
            expected="BOOLEAN: true deletes the row of the key",
            cure="Select it as a condition, for example operation = 'D'",
        )
    return StructType([field for field in schema.fields if field.name != marker])
