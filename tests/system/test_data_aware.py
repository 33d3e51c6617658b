"""DAGs of a real Airflow that a pipeline's commits start, and those that complete hours start."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

# Nobody looks a second time by the clock.
DAG = """
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow_etl_provider.triggers.batch_committed import BatchCommittedTrigger

trigger = BatchCommittedTrigger(pipeline={pipeline!r}, start_from="beginning", poll_seconds=86400)
commits = Asset("commits_of_{pipeline}", watchers=[AssetWatcher(name={pipeline!r}, trigger=trigger)])

with DAG({dag!r}, schedule=[commits], catchup=False, is_paused_upon_creation=False):

    @task
    def told(triggering_asset_events=None):
        return [event.extra["payload"] for events in triggering_asset_events.values() for event in events]

    told()
"""


# One DAG announces, the other one has a run for each hour.
HOURS = """
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task
from airflow_etl_provider.operators.complete_partitions import CompletePartitionsOperator

hours = Asset("{pipeline}/complete")

with DAG("{pipeline}_announce", schedule=None, is_paused_upon_creation=False):
    CompletePartitionsOperator(task_id="announce", pipeline={pipeline!r}, asset=hours)

with DAG("{pipeline}_hourly", schedule=PartitionedAssetTimetable(assets=hours), is_paused_upon_creation=False):

    @task
    def hour(dag_run=None):
        return dag_run.partition_key

    hour()
"""


@dataclass(frozen=True)
class Consumer:
    """A pipeline, and a DAG that its commits start."""

    site: Site
    pipeline: str
    dag: str

    def load(self, *ids: int) -> None:
        self.site.add_lines(self.pipeline, *ids)
        _, state = self.site.run(self.pipeline)
        assert state == "success"

    def told(self) -> list[dict[str, Any]]:
        """Return what all successful runs were told."""
        runs = self.site.airflow.api("GET", f"/dags/{self.dag}/dagRuns")["dag_runs"]
        done = [run["dag_run_id"] for run in runs if run["state"] == "success"]
        return [event for run_id in done for event in self.site.airflow.xcom(self.dag, run_id, "told")]

    def wait_rows(self, rows: int) -> None:
        until(lambda: sum({event["id"]: event["rows"] for event in self.told()}.values()) >= rows)

    def watchers(self) -> int:
        """Return how many triggers Airflow has for the pipeline's commits."""
        with self.site.server.connect("airflow") as conn:
            question = "SELECT count(*) FROM asset_watcher WHERE name = %s"
            return int(conn.execute(question, (self.pipeline,)).fetchone()[0])  # type: ignore[index]


def until(holds: Callable[[], bool], seconds: float = 180) -> None:
    over = monotonic() + seconds
    while not holds():
        assert monotonic() < over, "it has not come true"
        sleep(0.5)


@pytest.fixture
def consumer(site: Site) -> Iterator[Consumer]:
    pipeline = site.add_pipeline("told")
    dag = f"{pipeline}_to_others"
    file = site.airflow.dags / f"{dag}.py"
    file.write_text(DAG.format(dag=dag, pipeline=pipeline))
    site.airflow.wait_dag(dag)
    yield Consumer(site, pipeline, dag)
    file.unlink()
    site.airflow.api("DELETE", f"/dags/{dag}")


@pytest.mark.timeout(1200)
def test_commits_start_a_dag_over_a_crash_and_a_pause(consumer: Consumer) -> None:
    airflow = consumer.site.airflow
    consumer.load(1, 2, 3)
    consumer.wait_rows(3)

    airflow.kill_component("triggerer")
    consumer.load(4, 5)
    airflow.start_component("triggerer")
    consumer.wait_rows(5)

    airflow.api("PATCH", f"/dags/{consumer.dag}", {"is_paused": True})
    until(lambda: consumer.watchers() == 0)
    consumer.load(6)
    consumer.load(7)
    airflow.unpause(consumer.dag)
    consumer.wait_rows(7)

    told = {event["id"]: event for event in consumer.told()}
    assert sum(event["rows"] for event in told.values()) == 7
    ranges = [range(event["first_batch_id"], event["last_batch_id"] + 1) for event in told.values()]
    batches = [number for each in ranges for number in each]
    assert len(batches) == len(set(batches))
    question = "SELECT batch_id FROM etl.batch_tracker WHERE pipeline_id = %s AND record_count > 0"
    assert {row[0] for row in consumer.site.rows(question, consumer.pipeline)} <= set(batches)
    # One event for both, as they were committed during a pause.
    assert max(event["rows"] for event in told.values() if event["last_batch_id"] == max(batches)) == 2


@pytest.fixture
def hourly(site: Site) -> Iterator[str]:
    """A pipeline with a watermark, and the DAGs of its hours; its id."""
    name = f"hours_{uuid.uuid4().hex[:6]}"
    (site.root / name).mkdir()
    watermark = {"eventTimeColumn": "at", "delayThreshold": "10 minutes"}
    document = site.document(name, watermark=watermark)
    document["schemas"]["line"] = "id BIGINT, at TIMESTAMP"
    site.write(name, document)
    file = site.airflow.dags / f"{name}_hours.py"
    file.write_text(HOURS.format(pipeline=name))
    for dag in (name, f"{name}_announce", f"{name}_hourly"):
        site.airflow.wait_dag(dag)
    site.airflow.unpause(name)
    yield name
    file.unlink()


@pytest.mark.timeout(1200)
def test_each_complete_hour_starts_one_run(site: Site, hourly: str) -> None:
    airflow = site.airflow

    def load(*times: str) -> None:
        unfinished = site.root / f"{uuid.uuid4().hex}.json"
        unfinished.write_text("".join(f'{{"id": 1, "at": "2026-03-01T{time}:00Z"}}\n' for time in times))
        unfinished.replace(site.root / hourly / unfinished.name)
        assert site.run(hourly)[1] == "success"

    def announce() -> str:
        run_id = airflow.trigger(f"{hourly}_announce")
        assert airflow.wait_run(f"{hourly}_announce", run_id, seconds=240) == "success"
        return str(airflow.task_instance(f"{hourly}_announce", run_id, "announce")["state"])

    def runs() -> list[str]:
        found = airflow.api("GET", f"/dags/{hourly}_hourly/dagRuns")["dag_runs"]
        done = [run["dag_run_id"] for run in found if run["state"] == "success"]
        assert {run["state"] for run in found} <= {"success", "running", "queued"}
        return sorted(airflow.xcom(f"{hourly}_hourly", run_id, "hour") for run_id in done)

    load("05:20", "06:40", "07:05")
    assert announce() == "success"
    until(lambda: len(runs()) == 1)
    # The seventh hour still waits for late rows: 07:05 less ten minutes is before its end.
    assert runs() == ["2026-03-01T05:00:00+0000"]
    assert announce() == "skipped"
    load("07:30", "09:15")
    assert announce() == "success"
    until(lambda: len(runs()) >= 4)
    assert announce() == "skipped"
    assert runs() == [f"2026-03-01T0{hour}:00:00+0000" for hour in (5, 6, 7, 8)]
    question = "SELECT DISTINCT state FROM etl.complete_partition WHERE pipeline_id = %s"
    assert site.rows(question, hourly) == [("announced",)]
