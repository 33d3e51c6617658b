"""Pipeline documents that the configuration's tests start from, and how they look at what is wrong."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.contracts.config import InvalidConfigError, PipelineConfig, Problem

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"

Document = dict[str, Any]

_STATELESS: Document = {
    "pipelineId": "orders",
    "mode": "streaming",
    "extract": {
        "sourceType": "kafka",
        "topic": "orders",
        "schema": "id BIGINT, country STRING, price DECIMAL(10,2), created_at TIMESTAMP",
        "connectionParams": {"kafka.bootstrap.servers": "localhost:9092"},
    },
    "load": {"sinkType": "postgresql", "table": "sales.orders", "credentialId": "warehouse"},
    "streamingConfigJson": {"checkpointLocation": "/data/checkpoints/orders", "queryName": "orders"},
}


def stateless(**changes: Any) -> Document:
    """A valid pipeline without an aggregation. Changes: ``load__table="x"``; the value ``...`` takes a key out."""
    return _changed(_STATELESS, changes)


def files(**changes: Any) -> Document:
    document = copy.deepcopy(_STATELESS)
    document["extract"] = {
        "sourceType": "file",
        "schema": "id BIGINT, name STRING",
        "connectionParams": {"path": "/data/in", "format": "csv"},
    }
    return _changed(document, changes)


def windowed(**changes: Any) -> Document:
    """A valid pipeline with windows, append mode and a watermark."""
    document = copy.deepcopy(_STATELESS)
    document["transforms"] = [
        {
            "transformType": "aggregation",
            "parameters": {
                "groupByColumns": "country",
                "windowColumn": "created_at",
                "windowDuration": "10 minutes",
                "aggregations": "orders:count,price:sum",
            },
        }
    ]
    document["streamingConfigJson"]["watermark"] = {"eventTimeColumn": "created_at", "delayThreshold": "5 minutes"}
    return _changed(document, changes)


def totals(**changes: Any) -> Document:
    """A valid pipeline with groups without windows, update mode and upsert."""
    document = copy.deepcopy(_STATELESS)
    document["transforms"] = [
        {"transformType": "aggregation", "parameters": {"groupByColumns": "country", "aggregations": "price:sum"}}
    ]
    document["load"] |= {"writeMode": "upsert", "keys": "country"}
    document["streamingConfigJson"]["outputMode"] = "update"
    return _changed(document, changes)


def parse(document: Mapping[str, Any] | str, **variables: str) -> PipelineConfig:
    return PipelineConfig.from_json(document, variables=variables)


def problems(document: Mapping[str, Any] | str, **variables: str) -> list[Problem]:
    with pytest.raises(InvalidConfigError) as caught:
        parse(document, **variables)
    return caught.value.problems


def problem(document: Mapping[str, Any] | str, **variables: str) -> Problem:
    """The one thing that is wrong."""
    found = problems(document, **variables)
    assert len(found) == 1, "\n".join(str(item) for item in found)
    return found[0]


def shared_pipelines() -> list[Path]:
    return sorted((SHARED / "pipelines").glob("*.json"))


def reference_examples(name: str) -> list[str]:
    """The blocks of JSON in a reference document, as they stand."""
    [path] = (SHARED / "reference").glob(f"{name}_*")
    return re.findall(r"```json\n(.*?)```", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)


def _changed(document: Document, changes: Mapping[str, Any]) -> Document:
    result = copy.deepcopy(document)
    for path, value in changes.items():
        *parents, key = path.split("__")
        target: Any = result
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else target.setdefault(parent, {})
        if value is ...:
            del target[key]
        else:
            target[key] = json.loads(json.dumps(value))
    return result
