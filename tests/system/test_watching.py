"""Deferred sensors in a real Airflow: woken by commits, over a crash of the triggerer and of the database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from test_kill_and_secrets import wait_for

from sandbox.postgres import PostgresServer

if TYPE_CHECKING:
    from tests.system.conftest import Site

# Nobody looks a second time by the clock: who is woken, is woken by a commit.
DAG = """
from datetime import datetime
from airflow.sdk import DAG
from airflow_etl_provider.sensors.batch_gap import BatchGapSensor
from airflow_etl_provider.sensors.pipeline_freshness import PipelineFreshnessSensor
from airflow_etl_provider.sensors.streaming_query_progress import StreamingQueryProgressSensor
from airflow_etl_provider.sensors.watermark import WatermarkSensor

waiting = {{
    "pipeline": {pipeline!r},
    "ledger_conn_id": {pipeline!r},
    "wait_for_first_run": True,
    "deferrable": True,
    "poke_interval": 86400,
}}
with DAG({dag!r}, schedule=None, default_args=waiting, is_paused_upon_creation=False):
    BatchGapSensor(task_id="no_gap", retries=2)
    PipelineFreshnessSensor(task_id="fresh", younger_than="1 hour", end_from_trigger=True)
    StreamingQueryProgressSensor(task_id="finished", run_finished=True)
    WatermarkSensor(task_id="complete", through="2026-03-01T06:00:00Z")
"""
TASKS = ("no_gap", "fresh", "finished", "complete")


@dataclass(frozen=True)
class Watched:
    """A pipeline with a watermark, its database's own server, and a DAG that waits for it."""

    site: Site
    server: PostgresServer
    name: str
    dag: str

    def add_events(self, hour: int, *ids: int) -> None:
        lines = "".join(f'{{"id": {i}, "at": "2026-03-01T{hour:02}:05:00Z"}}\n' for i in ids)
        unfinished = self.site.root / f"{uuid.uuid4().hex}.json"
        unfinished.write_text(lines)
        unfinished.replace(self.site.root / self.name / unfinished.name)

    def wait_listening(self) -> None:
        """Wait until the triggerer listens to the pipeline's database."""
        listens = "SELECT FROM pg_stat_activity WHERE application_name = 'airflow-etl-triggerer-listens'"
        with self.server.connect("orders", autocommit=True) as conn:
            wait_for(lambda: conn.execute(listens).fetchone() is not None, "a triggerer that listens")

    def log(self, run_id: str, task: str) -> str:
        return self.site.airflow.task_log(self.dag, run_id, task)

    def result(self, run_id: str, task: str) -> Any:
        return self.site.airflow.xcom(self.dag, run_id, task)


@pytest.fixture
def watched(site: Site) -> Iterator[Watched]:
    name = f"watched_{uuid.uuid4().hex[:6]}"
    (site.root / name).mkdir()
    with PostgresServer() as server:
        server.create_database("orders")
        with server.connect("orders", autocommit=True) as conn:
            conn.execute("CREATE SCHEMA shop")
        site.add_connection(name, server, "orders")
        watermark = {"eventTimeColumn": "at", "delayThreshold": "5 minutes"}
        document = site.document(name, watermark=watermark, maxFilesPerTrigger=1)
        document["schemas"]["line"] = "id BIGINT, at TIMESTAMP"
        document["load"]["credentialId"] = name
        site.write(name, document)
        dag = f"{name}_is_watched"
        file = site.airflow.dags / f"{dag}.py"
        file.write_text(DAG.format(dag=dag, pipeline=name))
        for each in (name, dag):
            site.airflow.wait_dag(each)
        site.airflow.unpause(name)
        yield Watched(site, server, name, dag)
        file.unlink()
        site.airflow.api("DELETE", f"/connections/{name}")


@pytest.mark.timeout(900)
def test_sensors_are_woken_by_commits_over_crashes(watched: Watched) -> None:
    site, airflow = watched.site, watched.site.airflow
    run_id = airflow.trigger(watched.dag)
    for task in TASKS:
        airflow.wait_task(watched.dag, run_id, task, "deferred", seconds=240)
    airflow.kill_component("triggerer")
    watched.server.restart()
    airflow.start_component("triggerer")
    # And once more under a triggerer that listens.
    watched.wait_listening()
    watched.server.restart()

    for hour, number in ((5, 1), (6, 2), (6, 3)):
        watched.add_events(hour, number)
    _, state = site.run(watched.name)
    assert state == "success"
    assert airflow.wait_run(watched.dag, run_id, seconds=240) == "success"
    assert watched.result(run_id, "complete")["complete_through"] == "2026-03-01T06:00:00+00:00"
    assert watched.result(run_id, "finished")["run_state"] == "finished"
    # Airflow encodes once more what a trigger gives it.
    assert json.loads(watched.result(run_id, "fresh"))["what"] == "micro-batch"
    assert watched.result(run_id, "no_gap")["batches"] >= 1

    with watched.server.connect("orders", autocommit=True) as conn:
        assert conn.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1").rowcount == 1
    run_id = airflow.trigger(watched.dag)
    assert airflow.wait_run(watched.dag, run_id, seconds=240) == "failed"
    states = {task: airflow.task_instance(watched.dag, run_id, task)["state"] for task in TASKS}
    assert states == {"no_gap": "failed", "fresh": "success", "finished": "success", "complete": "success"}
    log = watched.log(run_id, "no_gap")
    assert "micro-batch 1 of query" in log
    assert "is not in the ledger" in log
    # It cannot heal: two retries were allowed, and none was made.
    assert airflow.task_instance(watched.dag, run_id, "no_gap")["try_number"] == 1
