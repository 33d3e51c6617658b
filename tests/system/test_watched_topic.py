"""A pipeline on a real broker, run by a real Airflow, and all sensors that wait for it while it commits."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.jars import jars
from sandbox.kafka import KafkaBroker, Record

if TYPE_CHECKING:
    from tests.system.conftest import Site

PIPELINE_DAG = """
from airflow.sdk import DAG
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

with DAG({name!r}, schedule=None, is_paused_upon_creation=False):
    StreamingPipelineOperator(task_id="run_pipeline", pipeline={document!r}, conf={{"spark.jars": {connector!r}}})
"""
# Nobody but those who ask the broker looks a second time by the clock: who is woken, is woken by a commit.
SENSORS_DAG = """
from airflow.sdk import DAG
from airflow_etl_provider.sensors.batch_gap import BatchGapSensor
from airflow_etl_provider.sensors.ledger_balance import LedgerBalanceSensor
from airflow_etl_provider.sensors.pipeline_freshness import PipelineFreshnessSensor
from airflow_etl_provider.sensors.retention_risk import RetentionRiskSensor
from airflow_etl_provider.sensors.source_lag import SourceLagSensor
from airflow_etl_provider.sensors.streaming_query_progress import StreamingQueryProgressSensor
from airflow_etl_provider.sensors.watermark import WatermarkSensor

waiting = {{"pipeline": {name!r}, "wait_for_first_run": True, "deferrable": True, "poke_interval": 86400}}
with DAG("{name}_is_watched", schedule=None, default_args=waiting, is_paused_upon_creation=False):
    StreamingQueryProgressSensor(task_id="read", offsets={{{topic!r}: {{"0": 3}}}}, end_from_trigger=True)
    WatermarkSensor(task_id="complete", through="2026-03-01T06:00:00Z")
    BatchGapSensor(task_id="joined_up")
    BatchGapSensor(task_id="nothing_deleted", excuse=["compaction"])
    LedgerBalanceSensor(task_id="balanced", last="1 day")
    PipelineFreshnessSensor(task_id="fresh", younger_than="1 hour")
    SourceLagSensor(task_id="caught_up", at_most_rows=0, poke_interval=1)
    RetentionRiskSensor(task_id="kept", at_least="1 hour", poke_interval=1)
    StreamingQueryProgressSensor(task_id="too_late", rows=1000, timeout=90)
    StreamingQueryProgressSensor(task_id="not_needed", rows=1000, timeout=90, soft_fail=True)
"""
MET = ("read", "complete", "joined_up", "nothing_deleted", "balanced", "fresh", "caught_up", "kept")


@dataclass(frozen=True)
class Topic:
    """A topic, the pipeline that reads it, and the DAG that watches them."""

    site: Site
    kafka: KafkaBroker
    name: str
    topic: str

    @property
    def dag(self) -> str:
        return f"{self.name}_is_watched"

    def produce(self, *ids: int, hour: int) -> None:
        at = f"2026-03-01T{hour:02}:05:00Z"
        self.kafka.produce(self.topic, [Record(json.dumps({"id": number, "at": at})) for number in ids])

    def run(self) -> None:
        run_id, state = self.site.run(self.name)
        assert state == "success", self.site.log(self.name, run_id)

    def states(self, run_id: str) -> dict[str, str]:
        return {one["task_id"]: one["state"] for one in self.site.airflow.task_instances(self.dag, run_id)}

    def result(self, run_id: str, task: str) -> Any:
        return self.site.airflow.xcom(self.dag, run_id, task)

    def log(self, run_id: str, task: str) -> str:
        return str(self.site.airflow.task_log(self.dag, run_id, task))


@pytest.fixture
def topic(site: Site, kafka: KafkaBroker) -> Topic:
    name = f"topic_{uuid.uuid4().hex[:6]}"
    topic = kafka.create_topic(name)
    watermark = {"eventTimeColumn": "at", "delayThreshold": "5 minutes"}
    options = {
        "kafka.bootstrap.servers": kafka.bootstrap_servers,
        "startingOffsets": "earliest",
        "failOnDataLoss": "false",
    }
    extract = {"sourceType": "kafka", "topic": topic, "schema": "id BIGINT, at TIMESTAMP", "connectionParams": options}
    document = {**site.document(name, watermark=watermark), "extract": extract}
    connector = ",".join(jar.as_uri() for jar in jars("spark-kafka"))
    files = {name: PIPELINE_DAG, f"{name}_is_watched": SENSORS_DAG}
    for dag, text in files.items():
        made = text.format(name=name, document=document, connector=connector, topic=topic)
        (site.airflow.dags / f"{dag}.py").write_text(made)
    for dag in files:
        site.airflow.wait_dag(dag)
    return Topic(site, kafka, name, topic)


@pytest.mark.timeout(1200)
def test_all_sensors_wait_for_a_topic_and_tell_of_its_holes(topic: Topic) -> None:
    airflow = topic.site.airflow
    run_id = airflow.trigger(topic.dag)
    for task in ("too_late", "not_needed", *MET):
        airflow.wait_task(topic.dag, run_id, task, "deferred", seconds=240)
    topic.produce(1, 2, 3, hour=6)
    topic.run()
    for task in MET:
        airflow.wait_task(topic.dag, run_id, task, "success", seconds=240)
    assert airflow.wait_run(topic.dag, run_id, seconds=240) == "failed"
    assert topic.states(run_id) == {**dict.fromkeys(MET, "success"), "too_late": "failed", "not_needed": "skipped"}
    assert json.loads(topic.result(run_id, "read"))["end_offsets"] == {topic.topic: {"0": 3}}
    assert topic.result(run_id, "joined_up")["batches"] == 1
    assert topic.result(run_id, "caught_up")["rows"] == 0
    for task in ("too_late", "not_needed"):
        assert f"Last seen: {topic.name}" in topic.log(run_id, task)

    # The broker deletes what was not read yet: the next run goes on behind it, and says so.
    topic.produce(4, 5, hour=7)
    topic.kafka.delete_records(topic.topic, {0: 5})
    topic.produce(6, hour=7)
    topic.run()
    run_id = airflow.trigger(topic.dag)
    assert airflow.wait_run(topic.dag, run_id, seconds=300) == "failed"
    states = topic.states(run_id)
    assert [task for task in MET if states[task] != "success"] == ["nothing_deleted"]
    assert "2 rows" in str(topic.result(run_id, "joined_up")["excused"])
    told = topic.log(run_id, "nothing_deleted")
    assert f"2 rows missing at {topic.topic}[0] 3 to 5, deleted by the broker before it was read" in told
    found = topic.site.rows(f"SELECT id FROM shop.{topic.name} ORDER BY id")
    assert [row[0] for row in found] == [1, 2, 3, 6]
