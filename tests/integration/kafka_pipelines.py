"""Pipelines that read Kafka, and what a topic holds as its own client sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from pipeline_runs import CREDENTIAL

from sandbox.kafka import KafkaBroker


@dataclass(frozen=True)
class Place:
    """A record where it lies."""

    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def kafka_pipeline(
    pipeline_id: str,
    brokers: str,
    topic: str,
    checkpoints: Path,
    *,
    schema: str,
    transforms: list[dict[str, Any]] | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a pipeline that appends a topic's records to ``public.result``."""
    params = {"kafka.bootstrap.servers": brokers, "subscribe": topic, "startingOffsets": "earliest"}
    return {
        "pipelineId": pipeline_id,
        "mode": "streaming",
        "schemas": {"row": schema},
        "extract": {
            "sourceType": "kafka",
            "topic": topic,
            "schemaName": "row",
            "connectionParams": {**params, **(options or {})},
        },
        "transforms": transforms or [],
        "load": {
            "sinkType": "postgresql",
            "table": "public.result",
            "writeMode": "append",
            "autoCreateTable": True,
            "credentialId": CREDENTIAL,
        },
        "streamingConfigJson": {
            "checkpointLocation": str(checkpoints / pipeline_id),
            "queryName": pipeline_id,
            "triggerMode": "availablenow",
        },
    }


def records_in(kafka: KafkaBroker, topic: str) -> list[Place]:
    """Return everything that the topic holds."""
    ends = kafka.end_offsets(topic)
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "look", "enable.partition.eof": False}
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        wanted = sum(ends.values())
        found: list[Place] = []
        while len(found) < wanted:
            messages = consumer.consume(min(wanted - len(found), 10_000), timeout=30)
            assert messages, "the topic's records did not come"
            for message in messages:
                assert message.error() is None, message.error()
                headers = tuple(message.headers() or ())
                found.append(Place(message.partition(), message.offset(), message.value(), message.key(), headers))
        return found
    finally:
        consumer.close()
