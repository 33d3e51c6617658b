"""The sections of a pipeline as the cross-field rules see them: valid ones, and what is left of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_jobs.contracts.config.error_handling import ErrorHandling
from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.streaming import Streaming
from spark_jobs.contracts.config.transforms import Transform


@dataclass(frozen=True)
class Parts:
    """The sections; None for one that is missing or wholly wrong, or else what is left of it (``salvage.py``)."""

    config: PipelineConfig | None
    extract: Extract | None
    transforms: tuple[Transform, ...] | None
    load: Load | None
    streaming: Streaming | None
    error_handling: ErrorHandling | None
    schemas: Mapping[str, Any]
    is_streaming: bool
    has_streaming: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], failed: set[str], config: PipelineConfig | None) -> Parts:
        """Sort validated values by section."""

        def valid(name: str) -> Any:
            return values.get(name)

        return cls(
            config=config,
            extract=valid("extract"),
            transforms=None if "transforms" in failed else values.get("transforms") or (),
            load=valid("load"),
            streaming=valid("streamingConfigJson"),
            error_handling=valid("errorHandlingConfig"),
            schemas=config.schemas if config else values.get("schemas") or {},
            is_streaming="streaming" in str(values.get("mode", "")).lower(),
            has_streaming=values.get("streamingConfigJson") is not None or "streamingConfigJson" in failed,
        )
