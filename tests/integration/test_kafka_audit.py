"""A checkpoint that Spark wrote, its ledger and a real broker compared: retention, a topic made anew, no broker."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from kafka_pipelines import kafka_pipeline
from pipeline_runs import CREDENTIAL, Pipelines

from sandbox.kafka import KafkaBroker
from spark_jobs.contracts.audit.audit import audit
from spark_jobs.contracts.audit.report import BAD, AuditReport, State, failure
from spark_jobs.contracts.audit.storage import open_files
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.runtime.stopping import Stop


@pytest.fixture
def look(pipelines: Pipelines) -> Callable[[], AuditReport]:
    def once() -> AuditReport:
        database = DatabaseConnection.from_airflow(CREDENTIAL, pipelines.database.airflow_uri)
        with closing(connect(database, application_name="audit")) as conn:
            return audit(LedgerView(conn, "etl"), "numbers", open_files)

    return once


def _produce(kafka: KafkaBroker, topic: str, *numbers: int) -> None:
    kafka.produce(topic, [f'{{"id": {number}}}' for number in numbers])


def _read(pipelines: Pipelines, kafka: KafkaBroker, topic: str, *numbers: int) -> dict[str, Any]:
    """Produce, and let the pipeline ``numbers`` read; return its configuration."""
    _produce(kafka, topic, *numbers)
    config = kafka_pipeline("numbers", kafka.bootstrap_servers, topic, pipelines.checkpoints, schema="id INT")
    pipelines.finish(config)
    return config


def test_what_the_broker_has_and_what_was_read(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, look: Callable[[], AuditReport]
) -> None:
    topic = new_topic(partitions=1)
    config = _read(pipelines, kafka, topic, *range(5))
    report = look()
    assert report.state is State.CONSISTENT, report
    assert report.compared_batches == 1
    assert report.not_judged == ()

    # What was read may be deleted; what was not read may not.
    kafka.delete_records(topic, {0: 5})
    assert look().state is State.CONSISTENT
    _produce(kafka, topic, *range(5, 9))
    kafka.delete_records(topic, {0: 7})
    hole = look()
    assert [finding.state for finding in hole.findings] == [State.SOURCE]
    assert f"{topic}[0] offsets 5 to 7, at most 2 rows" in hole.findings[0].found
    assert "exit code 6" in hole.findings[0].advice
    assert pipelines.run(config).exit_code is ExitCode.SOURCE_UNREACHABLE

    kafka.delete_topic(topic)
    gone = look()
    # The run has planned what it could not read.
    assert [finding.state for finding in gone.findings] == [State.SOURCE, State.PLANNED], gone
    kafka.create_topic(topic, partitions=1)
    _produce(kafka, topic, 1)
    anew = look()
    assert anew.state is State.SOURCE
    assert f"{topic}[0] ends at 1, read up to" in anew.findings[0].found


def test_a_resumed_query_that_has_committed_nothing_yet_is_judged_by_where_it_began(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, look: Callable[[], AuditReport]
) -> None:
    topic = new_topic(partitions=1)
    config = _read(pipelines, kafka, topic, 1)
    shutil.rmtree(pipelines.checkpoints / "numbers")
    stop = Stop()
    stop.ask()
    assert pipelines.run(config, resume="from_ledger", stop=stop).exit_code is ExitCode.STOPPED_COMMITTED
    report = look()
    assert (report.state, report.last_planned, report.last_committed) == (State.PLANNED, 0, None), report
    assert report.last_in_ledger is None
    _produce(kafka, topic, 2, 3, 4)
    kafka.delete_records(topic, {0: 3})
    hole = look()
    assert [finding.state for finding in hole.findings] == [State.SOURCE, State.PLANNED], hole
    assert f"{topic}[0] offsets 1 to 3, at most 2 rows" in hole.findings[0].found


def test_a_broker_that_does_not_answer_is_not_a_broken_checkpoint(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, look: Callable[[], AuditReport]
) -> None:
    topic = new_topic(partitions=1)
    _read(pipelines, kafka, topic, 1)
    pipelines.execute(
        "UPDATE etl.pipeline_run SET request = jsonb_set(request, "
        "'{config,extract,connectionParams,kafka.bootstrap.servers}', '\"127.0.0.1:1\"')"
    )
    report = look()
    assert [finding.state for finding in report.findings] == [State.UNKNOWN], report
    error = failure([report], BAD)
    assert error is not None
    assert error.retryable
