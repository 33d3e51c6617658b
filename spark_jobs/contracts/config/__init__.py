"""The pipeline's configuration: frozen models that read and write the JSON of a pipeline file.

``PipelineConfig.from_json`` and ``load_pipeline`` are the doors; one ``InvalidConfigError`` has all problems.
"""

from __future__ import annotations

from typing import Any

from spark_jobs.contracts.config.enumerations import (
    AggregationFunction,
    LateDataStrategy,
    OnConflict,
    OutputMode,
    PipelineMode,
    SchemaEvolution,
    TriggerKind,
    WriteMode,
    WriteStrategy,
)
from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.config.load import Load, TableName
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.problems import InvalidConfigError, Problem, UnsupportedConfigError
from spark_jobs.contracts.config.reading import load_pipeline, variable_names
from spark_jobs.contracts.config.streaming import LateData, Streaming, TriggerMode, Watermark
from spark_jobs.contracts.config.support import require_supported, unsupported
from spark_jobs.contracts.config.transforms import (
    Aggregation,
    AggregationTransform,
    FilterTransform,
    RegisteredTransform,
    SelectTransform,
    Transform,
)

__all__ = [
    "Aggregation",
    "AggregationFunction",
    "AggregationTransform",
    "Extract",
    "FilterTransform",
    "InvalidConfigError",
    "LateData",
    "LateDataStrategy",
    "Load",
    "OnConflict",
    "OutputMode",
    "PipelineConfig",
    "PipelineMode",
    "Problem",
    "RegisteredTransform",
    "SchemaEvolution",
    "SelectTransform",
    "Streaming",
    "TableName",
    "Transform",
    "TriggerKind",
    "TriggerMode",
    "UnsupportedConfigError",
    "Watermark",
    "WriteMode",
    "WriteStrategy",
    "json_schema",
    "load_pipeline",
    "require_supported",
    "unsupported",
    "variable_names",
]


def json_schema() -> dict[str, Any]:
    """Return the published JSON Schema, with which editors complete and check pipeline files."""
    from spark_jobs.contracts.config.editor_schema import published_schema  # noqa: PLC0415 - only editors need it

    return published_schema()
