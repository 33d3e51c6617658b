"""The demo's two pipelines, as the JSON documents that a user would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sandbox.orders import SCHEMA

WINDOWS = "orders-per-5-minutes"
LINES = "order-lines"
WINDOWS_TABLE = "sales.orders_per_5_minutes"
LINES_TABLE = "sales.order_lines"


def write_pipelines(folder: Path, extract: dict[str, Any], checkpoints: Path) -> list[Path]:
    """Write both pipelines' files and return them.

    :param extract: how the source is reached, see :func:`from_files` and :func:`from_kafka`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for document in (_windows(extract, checkpoints), _lines(extract, checkpoints)):
        path = folder / f"{document['pipelineId'].replace('-', '_')}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written


def from_files(folder: Path) -> dict[str, Any]:
    """Read JSON-lines files, four in a micro-batch."""
    options = {"path": str(folder), "format": "json", "maxFilesPerTrigger": "4"}
    return {"sourceType": "file", "schemaName": "order", "connectionParams": options}


def from_kafka(bootstrap_servers: str, topic: str) -> dict[str, Any]:
    """Read a topic from its beginning, 4,000 records in a micro-batch."""
    options = {
        "kafka.bootstrap.servers": bootstrap_servers,
        "subscribe": topic,
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": "4000",
    }
    return {"sourceType": "kafka", "topic": topic, "schemaName": "order", "connectionParams": options}


def _windows(extract: dict[str, Any], checkpoints: Path) -> dict[str, Any]:
    aggregation = {
        "groupByColumns": "country",
        "windowColumn": "created_at",
        "windowDuration": "5 minutes",
        "aggregations": "orders:count,quantity:sum,price:avg:average_price",
    }
    document = _pipeline(WINDOWS, "Orders per country in 5-minute windows", WINDOWS_TABLE, extract, checkpoints)
    document["transforms"] = [{"transformType": "aggregation", "parameters": aggregation}]
    document["streamingConfigJson"]["watermark"] = {"eventTimeColumn": "created_at", "delayThreshold": "10 minutes"}
    return document


def _lines(extract: dict[str, Any], checkpoints: Path) -> dict[str, Any]:
    columns = ("order_id", "customer_id", "sku", "country", "quantity", "price", "created_at")
    document = _pipeline(LINES, "Every order that can be read", LINES_TABLE, extract, checkpoints)
    document["transforms"] = [
        {"transformType": "select", "parameters": {"columns": {name: name for name in columns}}},
    ]
    return document


def _pipeline(pipeline_id: str, name: str, table: str, extract: dict[str, Any], checkpoints: Path) -> dict[str, Any]:
    return {
        "pipelineId": pipeline_id,
        "name": name,
        "mode": "streaming",
        "schemas": {"order": SCHEMA},
        "extract": extract,
        "transforms": [],
        "load": {
            "sinkType": "postgresql",
            "table": table,
            "writeMode": "append",
            "autoCreateTable": True,
            "credentialId": "warehouse",
        },
        "streamingConfigJson": {
            "checkpointLocation": str(checkpoints / pipeline_id),
            "queryName": pipeline_id,
            "outputMode": "append",
            "triggerMode": "availablenow",
            "enableIdempotence": True,
        },
    }
