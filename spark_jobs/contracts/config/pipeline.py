"""The whole pipeline file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from spark_jobs.contracts.config import variables as variable_texts
from spark_jobs.contracts.config.enumerations import PipelineMode, PipelineModeText
from spark_jobs.contracts.config.error_handling import ErrorHandling
from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.config.health import Health
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.config.schemas import SchemaText
from spark_jobs.contracts.config.section import Section, StringMap, Text, mismatch
from spark_jobs.contracts.config.streaming import Streaming
from spark_jobs.contracts.config.transforms import AggregationTransform, AnyTransform

_ID = re.compile(r"[\w.-]{1,200}", re.ASCII)


def _pipeline_id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise mismatch("a name of letters, digits, _ . and -, at most 200 of them")
    return value


PipelineId = Annotated[
    str,
    BeforeValidator(_pipeline_id),
    WithJsonSchema(
        {"type": "string", "anyOf": [{"pattern": r"^[A-Za-z0-9_.-]{1,200}$"}, {"pattern": r"\$\{[^{}]+\}"}]}
    ),
]


class PipelineConfig(Section):
    """A pipeline: source, transforms, sink, and how Spark runs it."""

    also_spelled: ClassVar[Mapping[str, str]] = {
        "errorHandling": "errorHandlingConfig",
        "health": "healthConfig",
        "dataQuality": "dataQualityConfig",
    }

    schema_url: Text | None = Field(None, alias="$schema", description="The JSON Schema's address, for editors.")
    pipeline_id: PipelineId = Field(description="Identifies the pipeline in the ledger; never change it.")
    name: Text | None = Field(None, description="What people call it.")
    mode: PipelineModeText = Field(
        PipelineMode.BATCH, description="`streaming`. `batch`, which is the default, is not supported yet."
    )
    variables: StringMap = Field(
        default_factory=dict, description="Defaults for `${name}` in the file's texts. Never secrets."
    )
    schemas: dict[str, SchemaText] = Field(
        default_factory=dict, description="Schemas by name; others are read from `schemas/NAME.json` beside the file."
    )
    extract: Extract = Field(description="Where rows come from.")
    transforms: tuple[AnyTransform, ...] = Field(default=(), description="What happens to them, in order.")
    load: Load = Field(description="Where they go.")
    streaming: Streaming | None = Field(
        None, alias="streamingConfigJson", description="How Spark runs the query; required by `mode` `streaming`."
    )
    error_handling: ErrorHandling | None = Field(
        None, alias="errorHandlingConfig", description="What happens on failures; also spelled `errorHandling`."
    )
    health: Health | None = Field(
        None, alias="healthConfig", description="When the pipeline counts as ill; also spelled `health`."
    )
    data_quality: dict[str, Any] | None = Field(
        None, alias="dataQualityConfig", description="Not supported yet; also spelled `dataQuality`."
    )

    @classmethod
    def from_json(
        cls,
        text_or_mapping: str | Mapping[str, Any],
        *,
        variables: Mapping[str, str] | None = None,
        base_dir: Path | None = None,
    ) -> PipelineConfig:
        """Read a pipeline from JSON text, or from the objects that it stands for.

        :param variables: values for ``${name}``; they win over the document's own ``variables``.
        :param base_dir: the directory that has ``schemas/NAME.json``; without it only the document's own count.
        :raises InvalidConfigError: with everything that is wrong. No other exception, whatever the document holds.
        """
        from spark_jobs.contracts.config.reading import read  # noqa: PLC0415 - it needs the class above

        return read(text_or_mapping, variables=variables or {}, base_dir=base_dir)

    def to_json(self) -> str:
        """Write the pipeline in the references' spelling: what was given, variables replaced, named schemas included.

        ``from_json`` of the result gives an equal configuration, without variables or files.
        """
        return json.dumps(self.to_mapping(), indent=2, ensure_ascii=False)

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``to_json`` writes, as objects."""
        document: dict[str, Any] = variable_texts.escape(
            self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
        return document

    @property
    def title(self) -> str:
        """The name, else the id."""
        return self.name or self.pipeline_id

    @property
    def aggregation(self) -> AggregationTransform | None:
        """The pipeline's aggregation; None for a stateless pipeline."""
        return next((step for step in self.transforms if isinstance(step, AggregationTransform)), None)

    @property
    def reader_options(self) -> dict[str, str]:
        """``extract.options`` with the limits of a micro-batch; of two limits on the same thing, the smaller."""
        options = self.extract.options
        if self.streaming is None:
            return options
        limits = {
            "kafka": ("maxOffsetsPerTrigger", self.streaming.max_records_per_trigger),
            "file": ("maxFilesPerTrigger", self.streaming.max_files_per_trigger),
        }
        name, limit = limits.get(self.extract.source_type, ("", None))
        if limit is None:
            return options
        own = [int(value) for key, value in options.items() if key.lower() == name.lower()]
        kept = {key: value for key, value in options.items() if key.lower() != name.lower()}
        return {**kept, name: str(min([limit, *own]))}
