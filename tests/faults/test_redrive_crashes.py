"""A redrive that is killed between Kafka and PostgreSQL: each record reaches its topic once more, and not twice."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from drivers import Garage
from pipeline_runs import Pipelines
from test_replay_crashes import give_up

from sandbox.jars import jars
from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.replay import LetterFilter, ReplayMode, ReplayRequest

POINTS = ("redrive.after_mark", "redrive.after_send")


@pytest.fixture
def garage(pipelines: Pipelines) -> Iterator[Garage]:
    """Drivers with Spark's Kafka connector."""
    found = ",".join(jar.as_uri() for jar in jars("spark-kafka"))
    with Garage(pipelines, {"STANDBY_JARS": found}) as garage:
        yield garage


def test_a_kill_between_kafka_and_postgresql_sends_no_record_twice(
    pipelines: Pipelines, garage: Garage, kafka: KafkaBroker
) -> None:
    topic = kafka.create_topic(f"redriven-{uuid4().hex[:8]}", partitions=2)
    kafka.produce(topic, [Record(f"no json {number}", partition=number % 2) for number in range(20)])
    config = _pipeline(pipelines, kafka, topic)
    assert garage.driver().run(config).exit_code == 0
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 20

    for point in POINTS:
        garage.driver().killed_at(_redrive(), point)
        assert give_up(pipelines) == 20
    assert sum(kafka.end_offsets(topic).values()) == 40
    assert garage.driver(another=False).run(_redrive()).exit_code == 0

    assert sum(kafka.end_offsets(topic).values()) == 40
    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1") == [("replayed", 20)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter_redrive") == 0
    kafka.delete_topic(topic)


def _redrive() -> ReplayRequest:
    letters = LetterFilter.of(pipeline_id="tills")
    return ReplayRequest.of(replay_id=uuid4(), letters=letters, mode=ReplayMode.REDRIVE)


def _pipeline(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> dict[str, object]:
    params = {"kafka.bootstrap.servers": kafka.bootstrap_servers, "subscribe": topic, "startingOffsets": "earliest"}
    return {
        "pipelineId": "tills",
        "mode": "streaming",
        "schemas": {"row": "id BIGINT"},
        "extract": {"sourceType": "kafka", "schemaName": "row", "connectionParams": params},
        "load": {
            "sinkType": "postgresql",
            "table": "public.result",
            "writeMode": "append",
            "autoCreateTable": True,
            "credentialId": "warehouse",
            "maxDeadLetterFraction": 1,
        },
        "streamingConfigJson": {
            "checkpointLocation": str(pipelines.checkpoints / "tills"),
            "queryName": "tills",
            "triggerMode": "availablenow",
        },
    }
