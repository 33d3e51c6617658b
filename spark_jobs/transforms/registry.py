"""Which transform serves a ``transformType``. A new one is one file and a line here, or an entry point.

An entry point of the group ``airflow_etl_provider.transforms`` names a module with a pydantic model ``Parameters``
and a function ``apply(df, parameters) -> DataFrame``, for stateless transforms that keep each row and the carried
columns of :mod:`spark_jobs.rows`.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from pyspark.sql import DataFrame

from spark_jobs.contracts.config import FilterTransform, RegisteredTransform, SelectTransform
from spark_jobs.contracts.config.transforms import Transform
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.transforms.filter import filter_rows
from spark_jobs.transforms.select import select

ENTRY_POINTS = "airflow_etl_provider.transforms"


def apply(df: DataFrame, transform: Transform) -> DataFrame:
    """Apply one stateless transform."""
    if isinstance(transform, SelectTransform):
        return select(df, transform.columns)
    if isinstance(transform, FilterTransform):
        return filter_rows(df, transform.condition)
    if isinstance(transform, RegisteredTransform):
        return _registered(df, transform)
    raise ConfigError(f"transformType {transform.transform_type!r} cannot be applied row by row")


def sorts(transform: Transform) -> bool:
    """Tell whether a transform may give a row another outcome than having passed."""
    return not isinstance(transform, SelectTransform)


def _registered(df: DataFrame, transform: RegisteredTransform) -> DataFrame:
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == transform.transform_type]
    if not found:
        raise ConfigError(
            f"transformType {transform.transform_type!r} is not known",
            expected=f"select, filter, aggregation, or one registered under the entry point group {ENTRY_POINTS}",
        )
    result: DataFrame = found[0].load().apply(df, transform.parameters)
    return result
