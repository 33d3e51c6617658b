"""Rules between settings, each in a file by its subject; and what follows from settings once all rules hold."""

from __future__ import annotations

from spark_jobs.contracts.config import (
    aggregation_rules,
    dead_letter_rules,
    failure_rules,
    load_rules,
    result_rules,
    source_rules,
)
from spark_jobs.contracts.config.columns import Columns
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.salvage import attempt
from spark_jobs.contracts.config.transforms import AggregationTransform


def check(parts: Parts, document: Document) -> None:
    """Note everything that does not fit together."""
    source_rules.check(parts, document)
    result = aggregation_rules.check(parts, document)
    attempt(load_rules.check, parts, document)
    attempt(failure_rules.check, parts, document)
    result_rules.check(parts, result, document)
    attempt(dead_letter_rules.check, parts, document)


def fill_in(config: PipelineConfig) -> None:
    """Fill in what follows from other settings: topic, path and schema of the source, the window's column."""
    extract = config.extract
    if extract.schema_name and not extract.schema_text:
        extract.derive(schema_text=config.schemas.get(extract.schema_name))
    if extract.source_type == "file" and not extract.path:
        extract.derive(path=extract.option("path"))
    if extract.source_type == "kafka" and not extract.topic:
        extract.derive(topic=extract.option("subscribe"))
    watermark = config.streaming.watermark if config.streaming else None
    columns = Columns(None, frozenset({watermark.event_time_column} if watermark else ()))
    for step in config.transforms:
        if isinstance(step, AggregationTransform):
            step.parameters.derive(window_column=aggregation_rules.window_column(step, columns))
        columns = columns.after(step)
