"""What ``errorHandlingConfig.dlqConfig`` may say, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest
from config_documents import Document, files, parse, problem, stateless

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.config.dead_letters import DeadLetterQueue

KAFKA = {"dlqType": "kafka", "bootstrapServers": "k:9092", "topic": "letters"}
FILES = {"dlqType": "s3", "bucketPath": "s3a://bucket/letters"}
_QUEUE = "errorHandlingConfig.dlqConfig"


def _queue(document: Document) -> DeadLetterQueue:
    handling = parse(document).error_handling
    assert handling is not None
    assert handling.dead_letter_queue is not None
    return handling.dead_letter_queue


def _with(queue: dict[str, Any], document: Document | None = None) -> Document:
    return {**(document or stateless()), "errorHandlingConfig": {"dlqConfig": queue}}


@pytest.mark.parametrize(
    ("spelled", "backend"),
    [
        ("kafka", "kafka"),
        ("Kafka", "kafka"),
        ("s3", "files"),
        ("S3", "files"),
        ("files", "files"),
        ("file", "files"),
        ("postgresql", "postgresql"),
        ("database", "postgresql"),
        ("PostgreSQL", "postgresql"),
    ],
)
def test_all_spellings_of_a_backend(spelled: str, backend: str) -> None:
    own = {"kafka": KAFKA, "files": FILES}.get(backend, {})
    for key in ("dlqType", "dlq_type", "type"):
        queue = {name: value for name, value in own.items() if name != "dlqType"} | {key: spelled}
        config = parse(_with(queue))
        assert _queue(_with(queue)).backend == backend
        assert PipelineConfig.from_json(config.to_json()) == config


def test_without_a_type_the_table_is_all_there_is() -> None:
    assert _queue(_with({})).backend == "postgresql"
    assert _queue(_with({"enabled": False, **KAFKA})).backend == "postgresql"


def test_settings_may_stand_in_config_as_in_reference_004() -> None:
    given = {"bootstrap.servers": "k:9092", "topic": "letters", "compression.type": "zstd", "kafka.linger.ms": 5}
    queue = _queue(_with({"type": "kafka", "config": given}))
    assert (queue.brokers, queue.topic_name) == ("k:9092", "letters")
    assert queue.options == {"kafka.compression.type": "zstd", "kafka.linger.ms": "5"}
    queue = _queue(_with({"type": "files", "config": {"bucketPath": "/letters", "fs.s3a.endpoint": "http://s3"}}))
    assert (queue.folder, queue.options, queue.partitions) == ("/letters", {"fs.s3a.endpoint": "http://s3"}, "date")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"dlqType": "sqs"}, "dlqType"),
    ({"dlqType": ""}, "dlqType"),
    ({**FILES, "partitionBy": "week"}, "partitionBy"),
    ({"dlqType": "kafka", "topic": "letters"}, "bootstrapServers"),
    ({"dlqType": "kafka", "bootstrapServers": "k:9092"}, "topic"),
    ({"dlqType": "files"}, "bucketPath"),
    ({**KAFKA, "bucketPath": "/letters"}, "bucketPath"),
    ({**KAFKA, "partitionBy": "date"}, "partitionBy"),
    ({**FILES, "topic": "letters"}, "topic"),
    ({**FILES, "bootstrapServers": "k:9092"}, "bootstrapServers"),
    ({"dlqType": "postgresql", "topic": "letters"}, "topic"),
    ({"topic": "letters"}, "topic"),
    ({"credentialId": "letters"}, "credentialId"),
    ({**KAFKA, "config": {"topic": "others"}}, "topic"),
    ({**KAFKA, "config": {"bootstrap.servers": "other:9092"}}, "bootstrapServers"),
    ({**FILES, "config": {"bucketPath": "/others"}}, "bucketPath"),
    ({**FILES, "config": {"path": "/others"}}, "config.path"),
    ({**KAFKA, "config": {"acks": "1"}}, "config.acks"),
    ({**KAFKA, "config": {"kafka.acks": "0"}}, 'config["kafka.acks"]'),
    ({**KAFKA, "config": {"transactional.id": "x"}}, 'config["transactional.id"]'),
    ({**KAFKA, "config": {"value.serializer": "x"}}, 'config["value.serializer"]'),
    ({**KAFKA, "config": {"sasl.jaas.config": "x"}}, 'config["sasl.jaas.config"]'),
    ({**KAFKA, "unknown": "x"}, "unknown"),
]


@pytest.mark.parametrize(("queue", "path"), WRONG)
def test_what_does_not_fit_together(queue: dict[str, Any], path: str) -> None:
    assert problem(_with(queue)).path == f"{_QUEUE}.{path}"


def test_a_broker_may_come_from_the_connection() -> None:
    assert _queue(_with({"dlqType": "kafka", "topic": "letters", "credentialId": "kafka"})).brokers is None


def test_a_copy_that_is_switched_off_need_not_be_complete() -> None:
    parse(_with({"enabled": False, "dlqType": "kafka"}))


def test_a_pipeline_does_not_read_its_own_letters() -> None:
    own = {"dlqType": "kafka", "topic": "orders", "bootstrapServers": "localhost:9092"}
    found = problem(_with(own))
    assert found.path == f"{_QUEUE}.topic"
    assert "again and again" in found.hint
    parse(_with({**own, "bootstrapServers": "elsewhere:9092"}))
    for folder in ("/data/in", "/data/in/letters"):
        assert problem(_with({**FILES, "bucketPath": folder}, files())).path == f"{_QUEUE}.bucketPath"
    parse(_with({**FILES, "bucketPath": "/data/in-letters"}, files()))


def test_fail_fast_is_off_unless_asked_for() -> None:
    assert not _fail_fast({})
    for key in ("failFast", "fail_fast"):
        assert [_fail_fast({key: value}) for value in ("true", True, "false", False)] == [True, True, False, False]


def _fail_fast(handling: dict[str, Any]) -> bool:
    found = parse(stateless(errorHandlingConfig=handling)).error_handling
    assert found is not None
    return found.fail_fast
