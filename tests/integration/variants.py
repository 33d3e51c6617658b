"""Variants of the reference pipelines: the same JSON with another source or other limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def read(path: Path) -> Document:
    document: Document = json.loads(path.read_text())
    return document


def through_kafka(document: Document, brokers: str, topic: str, *, per_trigger: int) -> Document:
    """Return the pipeline reading the same rows as JSON records; a line's file becomes its place in the topic."""
    extract = {
        "sourceType": "kafka",
        "topic": topic,
        "schemaName": document["extract"]["schemaName"],
        "connectionParams": {
            "kafka.bootstrap.servers": brokers,
            "subscribe": topic,
            "startingOffsets": "earliest",
            "maxOffsetsPerTrigger": str(per_trigger),
        },
    }
    streaming = {k: v for k, v in document["streamingConfigJson"].items() if k != "maxFilesPerTrigger"}
    variant = {**document, "extract": extract, "streamingConfigJson": streaming}
    variant["transforms"] = [_placed(transform) for transform in document["transforms"]]
    return variant


def _placed(transform: Document) -> Document:
    columns = dict(transform["parameters"].get("columns", {}))
    if "source_file" not in columns:
        return transform
    del columns["source_file"]
    columns |= {"kafka_partition": "_partition", "kafka_offset": "_offset"}
    return {**transform, "parameters": {"columns": columns}}


def with_limits(document: Document, **streaming: Any) -> Document:
    return {**document, "streamingConfigJson": {**document["streamingConfigJson"], **streaming}}


def with_variables(variables: Mapping[str, str]) -> list[str]:
    """Return the command line's options for variables."""
    return [word for name, value in variables.items() for word in ("--var", f"{name}={value}")]
