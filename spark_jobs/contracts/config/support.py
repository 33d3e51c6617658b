"""What a valid configuration asks for that this version does not have yet: listed, and refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from spark_jobs.contracts.config.enumerations import LateDataStrategy, PipelineMode
from spark_jobs.contracts.config.extract import FORMATS, PLANNED_FORMATS, PLANNED_SOURCES, SOURCES
from spark_jobs.contracts.config.load import SINKS, Load
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.problems import Location, Problem, UnsupportedConfigError, any_of, json_path
from spark_jobs.contracts.config.registry import usable_transform_names
from spark_jobs.contracts.config.streaming import Streaming
from spark_jobs.contracts.config.transforms import AggregationTransform, PlannedTransform


def unsupported(config: PipelineConfig) -> list[Problem]:
    """Return every setting that is not supported yet, with what can be used instead."""
    found = [*_mode(config), *_source(config), *_transforms(config), *_load(config.load)]
    if config.streaming:
        found += _streaming(config.streaming)
    if config.data_quality and config.data_quality.get("enabled") not in (False, "false"):
        found.append(
            _not_yet(("dataQualityConfig",), "data quality rules", "no rules", "a filter drops and counts rows")
        )
    return found


def require_supported(config: PipelineConfig) -> None:
    """Return when this version can run the pipeline.

    :raises UnsupportedConfigError: (a ``NotSupportedYetError``) with everything that it cannot do.
    """
    if problems := unsupported(config):
        raise UnsupportedConfigError(problems, source=f"The pipeline {config.pipeline_id}")


def _not_yet(location: Location, what: str, expected: str, hint: str = "") -> Problem:
    return Problem(json_path(location), f"{what}: not supported yet", expected, hint)


def _mode(config: PipelineConfig) -> Iterator[Problem]:
    if config.mode is PipelineMode.BATCH:
        given = "mode batch" if "mode" in config.model_fields_set else "mode batch, which is the default"
        hint = 'a scheduled run with triggerMode "availablenow" reads what is new and ends'
        yield _not_yet(("mode",), given, '"mode": "streaming"', hint)


def _source(config: PipelineConfig) -> Iterator[Problem]:
    extract = config.extract
    if extract.source_type in PLANNED_SOURCES:
        yield _not_yet(("extract", "sourceType"), f"the source {extract.source_type}", any_of(SOURCES))
    if extract.source_type == "file" and extract.format in PLANNED_FORMATS:
        location = ("extract", "connectionParams", "format")
        yield _not_yet(location, f"the format {extract.format}", any_of(FORMATS))


def _transforms(config: PipelineConfig) -> Iterator[Problem]:
    aggregations = 0
    for index, step in enumerate(config.transforms):
        location = ("transforms", index, "transformType")
        if isinstance(step, PlannedTransform):
            yield _not_yet(location, f"the transform {step.transform_type}", any_of(usable_transform_names()))
        if isinstance(step, AggregationTransform):
            aggregations += 1
            if aggregations == 2:
                hint = "let a second pipeline read the first one's result"
                yield _not_yet(location, "a second aggregation", "one aggregation", hint)


def _load(load: Load) -> Iterator[Problem]:
    if load.sink_type not in SINKS:
        yield _not_yet(("load", "sinkType"), f"the sink {load.sink_type}", any_of(SINKS))
    if load.schema_name:
        hint = "take it out; the target's columns are checked against the query's own before any data moves"
        yield _not_yet(("load", "schemaName"), "checking the result against a named schema", "no schemaName here", hint)


def _streaming(streaming: Streaming) -> Iterator[Problem]:
    where = ("streamingConfigJson",)
    if not streaming.enable_idempotence:
        expected = "true: this sink writes exactly once, and cannot do less"
        yield _not_yet((*where, "enableIdempotence"), "at-least-once writing", expected)
    if streaming.state_timeout:
        hint = "the watermark bounds the state of an aggregation"
        yield _not_yet((*where, "stateTimeout"), "a state timeout", "no stateTimeout", hint)
    strategy = streaming.late_data.strategy if streaming.late_data else LateDataStrategy.DROP
    if strategy in (LateDataStrategy.SEND_TO_DLQ, LateDataStrategy.SEPARATE_STREAM):
        hint = "both count late rows in the ledger; a longer delayThreshold makes fewer rows late"
        yield _not_yet((*where, "lateDataConfig", "strategy"), strategy.value, "drop or logAndDrop", hint)
