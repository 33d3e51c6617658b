"""extract.commitGroup: a consumer group whose offsets are the ledger's, for the tools that show lag."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from driver_processes import QUICK, java_environ, under_watch
from kafka_pipelines import kafka_pipeline
from pipeline_runs import Pipelines, select

from sandbox.jars import jars
from sandbox.kafka import KafkaBroker, Record
from sandbox.ports import free_port
from spark_jobs.contracts.errors import FencedError, SourceUnreachableError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.sources.base import Committer
from spark_jobs.sources.commit_group import CommitGroup

NewTopic = Callable[..., str]
_PIPELINE = "numbers"


def test_after_a_run_the_group_has_the_ledgers_offsets(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic
) -> None:
    topic = new_topic()
    kafka.produce(topic, [*_numbers(0, 60), *_numbers(60, 100, partition=1)])
    pipelines.finish(_config(pipelines, kafka, topic, maxOffsetsPerTrigger="30"))
    assert _ledger_end(pipelines) == {topic: {"0": 60, "1": 40}}
    assert _group(kafka, topic) == {0: 60, 1: 40}
    kafka.produce(topic, _numbers(100, 107))
    assert _lag(kafka, topic) == {0: 7, 1: 0}


def test_every_batch_moves_the_group(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 50))
    with caplog.at_level(logging.DEBUG, logger="etl.batch"):
        pipelines.finish(_config(pipelines, kafka, topic, maxOffsetsPerTrigger="20"))
    events = [record.getMessage().split(" ")[0] for record in caplog.records if record.name == "etl.batch"]
    batch = ["event=batch_started", "event=batch_committed", "event=offsets_committed"]
    assert events == batch * 3 + ["event=offsets_committed"]
    assert _group(kafka, topic) == {0: 50}


def test_a_kill_between_database_and_group_is_put_right_by_the_next_run(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 50))
    config = _config(pipelines, kafka, topic, maxOffsetsPerTrigger="20")
    faults = tmp_path / "faults"
    faults.write_text("batch.after_commit@2 kill-driver\n")
    command = ("run", str(pipelines.path(config)), *QUICK, "--jars", ",".join(map(str, jars("spark-kafka"))))
    with under_watch(pipelines.command(*command, ETL_FAULTS_FILE=str(faults), **java_environ())) as driver:
        driver.communicate(timeout=300)
    assert driver.returncode == -9
    assert _ledger_end(pipelines) == {topic: {"0": 40}}
    assert _group(kafka, topic) == {0: 20}
    pipelines.finish(config)
    assert _group(kafka, topic) == {0: 50}
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(50, 50)]


def test_a_group_with_members_does_not_stop_the_run_which_is_made_up_for_later(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 10))
    config = _config(pipelines, kafka, topic)
    with _member(kafka, topic):
        pipelines.finish(config)
        assert _group(kafka, topic) == {}
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(line.startswith("event=offsets_not_committed") and "has members elsewhere" in line for line in warned)
    assert warned
    assert pipelines.one("SELECT count(*) FROM result") == 10
    assert pipelines.finish(config).result.batches == 0
    assert _group(kafka, topic) == {0: 10}


def test_a_deleted_group_comes_back_with_the_next_run(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 10))
    config = _config(pipelines, kafka, topic)
    pipelines.finish(config)
    kafka.admin().delete_consumer_groups([_name(topic)])[_name(topic)].result(timeout=30)
    assert _group(kafka, topic) == {}
    pipelines.finish(config)
    assert _group(kafka, topic) == {0: 10}


def test_a_new_checkpoint_that_was_accepted_moves_the_group_back(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 50))
    config = _config(pipelines, kafka, topic, maxOffsetsPerTrigger="20")
    pipelines.finish(config)
    config["streamingConfigJson"]["checkpointLocation"] = str(tmp_path / "another")
    # The second batch ends the run: an expression fails on a row of it.
    config["errorHandlingConfig"] = {"failFast": True}
    config["transforms"][0]["parameters"]["columns"]["id"] = "IF(id = 25, raise_error('stop'), id)"
    ended = pipelines.run(config, resume="accept_new_checkpoint")
    assert ended.exit_code is ExitCode.DATA_ERROR
    assert _group(kafka, topic) == {0: 20}


def test_the_group_that_spark_reads_with_is_refused(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: NewTopic, spark: Any
) -> None:
    topic = new_topic(partitions=1)
    config = _config(pipelines, kafka, topic)
    config["extract"]["credentialId"] = "broker"
    with pytest.MonkeyPatch.context() as environ:
        extra = json.dumps({"kafka.group.id": _name(topic)})
        environ.setenv("AIRFLOW_CONN_BROKER", json.dumps({"conn_type": "kafka", "extra": extra}))
        ended = pipelines.run(config)
    assert ended.exit_code is ExitCode.CONFIG_INVALID
    assert "extract.commitGroup is the group that Spark itself reads with" in str(ended.error)


def test_offsets_never_go_backwards(spark: Any, kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=1)
    with _commit_group(spark, kafka, topic) as newer, _commit_group(spark, kafka, topic) as zombie:
        zombie.move_to({topic: {"0": 5}}, _committer())
        newer.move_to({topic: {"0": 9}}, _committer())
        zombie.move_to({topic: {"0": 7}}, _committer())
    assert _group(kafka, topic) == {0: 9}


def test_a_fenced_driver_commits_nothing(spark: Any, kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=1)

    def fence() -> None:
        raise FencedError("A newer run exists")

    with _commit_group(spark, kafka, topic) as group, pytest.raises(FencedError):
        group.move_to({topic: {"0": 5}}, Committer(_PIPELINE, "query", fence))
    assert _group(kafka, topic) == {}


def test_a_driver_that_was_frozen_after_it_asked_the_fence_commits_nothing(
    spark: Any, kafka: KafkaBroker, new_topic: NewTopic
) -> None:
    topic = new_topic(partitions=1)
    with _commit_group(spark, kafka, topic) as newer, _commit_group(spark, kafka, topic) as zombie:

        def frozen_through_a_newer_run() -> None:
            newer.move_to({topic: {"0": 9}}, _committer())
            sleep(3.1)

        with pytest.raises(SourceUnreachableError, match="not committed in time"):
            zombie.move_to({topic: {"0": 7}}, Committer(_PIPELINE, f"query of {_PIPELINE}", frozen_through_a_newer_run))
    assert _group(kafka, topic) == {0: 9}


@pytest.mark.parametrize("ours", [3, 30])
def test_another_pipelines_group_stays_as_it_is(
    spark: Any, kafka: KafkaBroker, new_topic: NewTopic, ours: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=1)
    with _commit_group(spark, kafka, topic) as theirs, _commit_group(spark, kafka, topic) as group:
        theirs.move_to({topic: {"0": 20}}, _committer("orders"))
        group.move_to({topic: {"0": ours}}, _committer())
    assert _group(kafka, topic) == {0: 20}
    assert "event=offsets_left" in caplog.text
    assert "written by pipeline orders" in caplog.text


def test_what_another_program_left_is_taken_over_forwards_only(
    spark: Any, kafka: KafkaBroker, new_topic: NewTopic, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, _numbers(0, 50))
    with _member(kafka, topic) as consumer:
        consumer.commit(offsets=[TopicPartition(topic, 0, 20)], asynchronous=False)
    with _commit_group(spark, kafka, topic) as group:
        group.move_to({topic: {"0": 15}}, _committer())
        assert _group(kafka, topic) == {0: 20}
        assert "written by somebody else" in caplog.text
        group.move_to({topic: {"0": 25}}, _committer())
    assert _group(kafka, topic) == {0: 25}


def test_a_broker_that_is_gone_holds_up_a_batch_for_seconds_only(spark: Any) -> None:
    group = CommitGroup(spark, "lag", {"bootstrap.servers": f"127.0.0.1:{free_port()}"})
    started = monotonic()
    with pytest.raises(SourceUnreachableError, match="cannot be committed"):
        group.move_to({"topic": {"0": 5}}, _committer())
    assert monotonic() - started < 5


def _numbers(start: int, stop: int, partition: int = 0) -> list[Record]:
    return [Record(json.dumps({"id": number}), partition=partition) for number in range(start, stop)]


def _name(topic: str) -> str:
    return f"lag of {topic}"


def _config(pipelines: Pipelines, kafka: KafkaBroker, topic: str, **options: str) -> dict[str, Any]:
    config = kafka_pipeline(
        _PIPELINE,
        kafka.bootstrap_servers,
        topic,
        pipelines.checkpoints,
        schema="id BIGINT",
        transforms=[select(id="id")],
        options=options,
    )
    config["extract"]["commitGroup"] = _name(topic)
    return config


def _committer(pipeline_id: str = _PIPELINE) -> Committer:
    return Committer(pipeline_id, f"query of {pipeline_id}", lambda: None)


@contextmanager
def _commit_group(spark: Any, kafka: KafkaBroker, topic: str) -> Iterator[CommitGroup]:
    group = CommitGroup(spark, _name(topic), {"bootstrap.servers": kafka.bootstrap_servers})
    try:
        yield group
    finally:
        group.close()


@contextmanager
def _member(kafka: KafkaBroker, topic: str) -> Iterator[Any]:
    """Join the group as a consumer that reads, and leave it."""
    options = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": _name(topic), "enable.auto.commit": False}
    consumer = Consumer({**options, "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe([topic])
        assert consumer.poll(30) is not None
        yield consumer
    finally:
        consumer.close()


def _ledger_end(pipelines: Pipelines) -> Any:
    return pipelines.one("SELECT end_offsets FROM etl.batch_tracker ORDER BY batch_id DESC LIMIT 1")


def _group(kafka: KafkaBroker, topic: str) -> dict[int, int]:
    asked = [ConsumerGroupTopicPartitions(_name(topic))]
    answer = kafka.admin().list_consumer_group_offsets(asked)[_name(topic)].result(timeout=30)
    return {place.partition: place.offset for place in answer.topic_partitions if place.topic == topic}


def _lag(kafka: KafkaBroker, topic: str) -> dict[int, int]:
    """Return the lag as the tools reckon it: log end less the group's offset."""
    return {partition: end - _group(kafka, topic)[partition] for partition, end in kafka.end_offsets(topic).items()}
