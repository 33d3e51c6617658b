"""A redrive that is killed at any step, or loses its task: each record reaches its topic once more, and not twice."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from drivers import Garage
from pipeline_runs import Pipelines
from test_replay_crashes import give_up

from sandbox.jars import jars
from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.replay import LetterFilter, ReplayMode, ReplayRequest
from spark_jobs.runtime.redrive import HEADER

POINTS = (
    "run.after_claim",
    "replay.after_taking",
    "replay.before_batch",
    "redrive.after_mark",
    "redrive.after_send",
    "single.before_ledger",
    "single.before_commit",
    "single.after_commit",
    "replay.after_batch",
    "run.before_end",
)

_CONNECTOR = ",".join(jar.as_uri() for jar in jars("spark-kafka"))
_SET = AlterConfigOpType.SET


@pytest.fixture
def garage(pipelines: Pipelines) -> Iterator[Garage]:
    """Drivers with Spark's Kafka connector."""
    with Garage(pipelines, {"STANDBY_JARS": _CONNECTOR}) as garage:
        yield garage


@pytest.fixture
def topic(kafka: KafkaBroker) -> Iterator[str]:
    """A topic with twenty records that are no JSON."""
    name = kafka.create_topic(f"redriven-{uuid4().hex[:8]}", partitions=2)
    kafka.produce(name, [Record(f"no json {number}", partition=number % 2) for number in range(20)])
    yield name
    kafka.delete_topic(name)


def test_a_kill_at_any_step_sends_no_record_twice(
    pipelines: Pipelines, garage: Garage, kafka: KafkaBroker, topic: str
) -> None:
    config = _pipeline(pipelines, kafka, topic)
    assert garage.driver().run(config).exit_code == 0
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 20

    for point in POINTS:
        garage.driver().killed_at(_redrive(batch_size=3), point)
        give_up(pipelines)
        # A letter is home when its record has been sent; one that was sent may not know it yet.
        home = pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'replayed'")
        assert home <= sum(kafka.end_offsets(topic).values()) - 20, point
    assert garage.driver(another=False).run(_redrive()).exit_code == 0

    assert sum(kafka.end_offsets(topic).values()) == 40
    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1") == [("replayed", 20)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter_redrive") == 0
    assert sorted(record_ids(kafka, topic)) == sorted(
        name for (name,) in pipelines.rows("SELECT dead_letter_id::text FROM etl.dead_letter")
    )


def test_a_task_that_failed_is_not_run_again_by_spark(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    config = _pipeline(pipelines, kafka, topic)
    large = Record("no json " + "x" * 20_000, partition=0)
    kafka.produce(topic, [large])
    # As on a cluster: Spark would run a failed task four times.
    with Garage(pipelines, {"STANDBY_JARS": _CONNECTOR, "STANDBY_MASTER": "local[2,4]"}) as garage:
        assert garage.driver().run(config).exit_code == 0
        limit = ConfigResource(
            "topic", topic, incremental_configs=[ConfigEntry("max.message.bytes", "10000", incremental_operation=_SET)]
        )
        for done in kafka.admin().incremental_alter_configs([limit]).values():
            done.result(timeout=30)
        answer = garage.driver().run(_redrive())
        assert "could not be sent" in answer.error
        # Its client ended with its driver: those that were on their way are there by now, or never come.
        assert sum(kafka.end_offsets(topic).values()) <= 41
        assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1") == [("pending", 21)]

        letters = pipelines.rows("SELECT dead_letter_id::text FROM etl.dead_letter WHERE length(raw_value) < 100")
        answer = garage.driver(another=False).run(_redrive(ids=[name for (name,) in letters]))
        assert (answer.exit_code, answer.error) == (0, "")
    assert sum(kafka.end_offsets(topic).values()) == 41
    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1") == [
        ("pending", 1),
        ("replayed", 20),
    ]


def record_ids(kafka: KafkaBroker, topic: str) -> list[str]:
    """Return the letters' ids that records of the topic bear."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid4().hex})
    ends = kafka.end_offsets(topic)
    found = []
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        for _ in range(sum(ends.values())):
            record = consumer.poll(30)
            assert record is not None
            found += [value.decode() for name, value in record.headers() or [] if name == f"{HEADER}id"]
    finally:
        consumer.close()
    return found


def _redrive(*, ids: list[str] | None = None, **more: object) -> ReplayRequest:
    letters = LetterFilter.of(pipeline_id="tills", **({"ids": ids} if ids else {}))
    return ReplayRequest.of(replay_id=uuid4(), letters=letters, mode=ReplayMode.REDRIVE, **more)


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
