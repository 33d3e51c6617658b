"""Which source serves a ``sourceType``. A new source is one file and one line here, or an entry point elsewhere.

An entry point of the group ``airflow_etl_provider.sources`` names a module with a pydantic model ``Parameters`` and a
function ``build(spark, config, schema, secrets) -> Source``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points

from pyspark.errors import ParseException
from pyspark.sql import SparkSession
from pyspark.sql.types import DataType, StructType

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.sources.base import Source
from spark_jobs.sources.files import FORMATS
from spark_jobs.sources.kafka import KafkaSource
from spark_jobs.sources.rate import RateSource

Build = Callable[[SparkSession, PipelineConfig, "StructType | None", dict[str, str]], Source]

ENTRY_POINTS = "airflow_etl_provider.sources"


def build_source(spark: SparkSession, config: PipelineConfig, secrets: dict[str, str]) -> Source:
    """Return the pipeline's source.

    :param secrets: reader options that come from the source's connection; never shown.
    :raises ConfigError: for a schema that Spark cannot read, or a missing path.
    """
    kind = config.extract.source_type
    build = _BUILT_IN.get(kind) or _registered(kind)
    return build(spark, config, _schema(config), secrets)


def _schema(config: PipelineConfig) -> StructType | None:
    text = config.extract.schema_text or config.schemas.get(config.extract.schema_name or "")
    if text is None:
        return None
    try:
        schema = _parse(text)
    except (ParseException, ValueError, KeyError) as error:
        raise ConfigError(
            "extract: the schema cannot be read",
            found=f"{text} ({str(error).splitlines()[0]})",
            expected="Spark DDL (`id BIGINT, name STRING`) or Spark's JSON form",
            cure="Correct it in `schemas` or in schemas/NAME.json",
        ) from error
    if not isinstance(schema, StructType):
        raise ConfigError(
            "extract: the schema is no list of columns", found=text, expected="Spark DDL: `id BIGINT, name STRING`"
        )
    return schema


def _parse(text: str) -> DataType:
    if text.lstrip().startswith("{"):
        return StructType.fromJson(json.loads(text))
    return StructType.fromDDL(text)


def _needed(schema: StructType | None, config: PipelineConfig) -> StructType:
    if schema is None:
        raise ConfigError(
            f"extract: a {config.extract.source_type} source needs a schema",
            expected="extract.schemaName, naming one of `schemas` (or schemas/NAME.json)",
            cure="Add the schema",
        )
    return schema


def _kafka(spark: SparkSession, config: PipelineConfig, schema: StructType | None, secrets: dict[str, str]) -> Source:
    return KafkaSource(spark, _needed(schema, config), config.reader_options, secrets, config.extract.commit_group)


def _files(spark: SparkSession, config: PipelineConfig, schema: StructType | None, secrets: dict[str, str]) -> Source:
    path = config.extract.path or config.extract.option("path")
    kind = FORMATS.get(config.extract.format or "")
    if not path or kind is None:
        raise ConfigError(
            "extract: a file source needs a path and a format",
            found=f"path {path!r}, format {config.extract.format!r}",
            expected="connectionParams.path, and connectionParams.format: csv, json or parquet",
        )
    return kind(spark, _needed(schema, config), {**config.reader_options, **secrets}, path)


def _rate(spark: SparkSession, config: PipelineConfig, _schema: StructType | None, _secrets: dict[str, str]) -> Source:
    return RateSource(spark, config.reader_options)


_BUILT_IN: dict[str, Build] = {"kafka": _kafka, "file": _files, "rate": _rate}


def _registered(kind: str) -> Build:
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == kind]
    if not found:
        raise ConfigError(
            f"extract.sourceType {kind!r} is not known",
            expected=f"one of {', '.join(_BUILT_IN)}, or one registered under the entry point group {ENTRY_POINTS}",
        )
    build: Build = found[0].load().build
    return build
