"""Rules between settings."""

from __future__ import annotations

from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts


def check(parts: Parts, document: Document) -> None:
    """Note."""


def fill_in(parts: Parts) -> None:
    """Fill in what follows from other settings, after all rules held."""
    config = parts.config
    if config is None:
        return
    extract = config.extract
    if extract.schema_name and not extract.schema_text:
        extract.derive(schema_text=config.schemas.get(extract.schema_name))
    if extract.source_type == "file" and not extract.path:
        extract.derive(path=extract.option("path"))
    if extract.source_type == "kafka" and not extract.topic:
        extract.derive(topic=extract.option("subscribe"))
    aggregation = config.aggregation
    if (
        aggregation
        and aggregation.window_duration
        and not aggregation.window_column
        and config.streaming
        and config.streaming.watermark
    ):
        aggregation.parameters.derive(window_column=config.streaming.watermark.event_time_column)
