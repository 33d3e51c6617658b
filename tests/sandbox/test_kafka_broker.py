"""The sandbox's own Kafka broker, seen through Spark's connector."""

from __future__ import annotations

import uuid

import pytest

from sandbox.kafka import KafkaBroker, Record


@pytest.fixture
def topic(kafka):
    name = kafka.create_topic(f"test-{uuid.uuid4().hex[:8]}", partitions=2, config={"cleanup.policy": "delete"})
    yield name
    kafka.delete_topic(name)


def test_spark_reads_what_was_produced(spark, kafka, topic):
    kafka.produce(topic, [Record(f"value {n}", key=str(n), headers=(("h", b"x"),), partition=n % 2) for n in range(10)])
    frame = (
        spark.read.format("kafka")
        .option("kafka.bootstrap.servers", kafka.bootstrap_servers)
        .option("subscribe", topic)
        .option("includeHeaders", "true")
        .load()
    )
    rows = {(row.key.decode(), row.value.decode(), row.partition) for row in frame.collect()}
    assert rows == {(str(n), f"value {n}", n % 2) for n in range(10)}


def test_deleted_records_are_gone(kafka, topic):
    kafka.produce(topic, [Record("a", partition=0), Record("b", partition=0), "somewhere"])
    kafka.delete_records(topic, {0: 2})
    assert sum(kafka.end_offsets(topic).values()) == 3


def test_records_survive_a_restart():
    with KafkaBroker() as broker:
        topic = broker.create_topic("kept")
        assert broker.produce(topic, ["a", b"b"]) == 2
        broker.restart()
        assert broker.end_offsets(topic) == {0: 2}
