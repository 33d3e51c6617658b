"""In a real Airflow, the triggerer asks a broker with the login of a connection that Airflow keeps."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

from source_ledger import SourceLedger

from sandbox.kafka import PASSWORD, USER, KafkaBroker, Record

if TYPE_CHECKING:
    from conftest import Site

DAG_FILE = """
from airflow.sdk import DAG
from airflow_etl_provider.sensors.retention_risk import RetentionRiskSensor
from airflow_etl_provider.sensors.source_lag import SourceLagSensor

with DAG("watch_source", schedule=None, catchup=False, is_paused_upon_creation=False):
    watched = {{"pipeline": {pipeline!r}, "deferrable": True, "poke_interval": 1}}
    SourceLagSensor(task_id="caught_up", at_most_rows=0, **watched) >> RetentionRiskSensor(
        task_id="kept", at_least="1 hour", **watched
    )
"""


def test_a_deferred_sensor_logs_in_to_the_broker_and_sees_the_lag_go(site: Site, kafka: KafkaBroker) -> None:
    topic = kafka.create_topic(f"watched-{uuid.uuid4().hex[:8]}")
    kafka.produce(topic, [Record("1")])
    extra = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    broker = {"connection_id": "orders_broker", "conn_type": "kafka", "login": USER, "password": PASSWORD}
    site.airflow.api("POST", "/connections", {**broker, "extra": json.dumps(extra)})
    options = {"kafka.bootstrap.servers": kafka.login_servers, "startingOffsets": "earliest"}
    extract = {"sourceType": "kafka", "topic": topic, "schema": "id BIGINT", "connectionParams": options}
    name = f"watched_{uuid.uuid4().hex[:6]}"
    config = {**site.document(name), "extract": {**extract, "credentialId": "orders_broker"}}
    (site.airflow.dags / "watch_source.py").write_text(DAG_FILE.format(pipeline=name))
    ledger = SourceLedger(site.server.airflow_uri("warehouse"), config)
    with closing(ledger.conn):
        ledger.start()
        site.airflow.wait_dag("watch_source")
        run_id = site.airflow.trigger("watch_source")
        site.airflow.wait_task("watch_source", run_id, "caught_up", "deferred", seconds=300)
        ledger.commit({topic: {"0": 1}})
    assert site.airflow.wait_run("watch_source", run_id, seconds=420) == "success"
    assert site.airflow.xcom("watch_source", run_id, "caught_up")["rows"] == 0
    assert site.airflow.xcom("watch_source", run_id, "kept")["hours_left"] is None
    log = site.airflow.task_log("watch_source", run_id, "caught_up")
    assert "nothing is unread" in str(log)
    assert PASSWORD not in str(log)

    # A hole in the topic: what the pipeline had not read is deleted, as retention would.
    kafka.produce(topic, [Record("2"), Record("3")])
    kafka.delete_records(topic, {0: 3})
    run_id = site.airflow.trigger("watch_source")
    assert site.airflow.wait_run("watch_source", run_id, seconds=420) == "failed"
    assert site.airflow.task_instance("watch_source", run_id, "caught_up")["state"] == "success"
    assert "deleted" in str(site.airflow.task_log("watch_source", run_id, "caught_up"))
    told = str(site.airflow.task_log("watch_source", run_id, "kept"))
    assert f"The broker has deleted what pipeline '{name}' had not read" in told
    assert f"{topic}[0] offsets 1 to 3, at most 2 rows" in told
