"""DAGs of a real Airflow that a pipeline's commits start, and those that complete hours start."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import duckdb
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


# One DAG announces; the other one has a run for each hour, and counts what the target has of it.
HOURS = """
from datetime import datetime, timedelta

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task
from airflow_etl_provider.operators.complete_partitions import CompletePartitionsOperator

hours = Asset("{pipeline}/complete")

with DAG("{pipeline}_announce", schedule=None, is_paused_upon_creation=False):
    CompletePartitionsOperator(task_id="announce", pipeline={pipeline!r}, asset=hours)

with DAG("{pipeline}_hourly", schedule=PartitionedAssetTimetable(assets=hours), is_paused_upon_creation=False):

    @task
    def hour(dag_run=None):
        begins = datetime.fromisoformat(dag_run.partition_key)
        count = 'SELECT count(*) FROM shop.{pipeline} WHERE "InvoiceDate" >= %s AND "InvoiceDate" < %s'
        [lines] = PostgresHook("warehouse").get_first(count, parameters=(begins, begins + timedelta(hours=1)))
        return [dag_run.partition_key, lines]

    hour()
"""
LINE = (
    "InvoiceNo STRING, StockCode STRING, Description STRING, Quantity INT, InvoiceDate TIMESTAMP, "
    "UnitPrice DECIMAL(12,4), CustomerID DOUBLE, Country STRING"
)
LATE = timedelta(minutes=10)


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


@dataclass(frozen=True)
class Shop:
    """A day of the real shop, whose lines arrive in two parts; what its hours hold is what DuckDB counts."""

    site: Site
    pipeline: str
    day: Path

    def arrive(self, since: str, until: str) -> None:
        """Load the lines of these hours."""
        file = self.site.root / f"{uuid.uuid4().hex}.csv"
        self._ask(f"COPY ({self._lines(since, until)}) TO '{file}' (HEADER)")
        file.replace(self.site.root / self.pipeline / file.name)
        assert self.site.run(self.pipeline)[1] == "success"

    def complete_hours(self, until: str) -> list[list[Any]]:
        """Return the hours that no later line may change, the empty ones too, each with its number of lines."""
        lines = self._lines("00:00", until)
        [(first, newest)] = self._ask(f"SELECT min(InvoiceDate::TIMESTAMP), max(InvoiceDate::TIMESTAMP) FROM ({lines})")
        counts = dict(
            self._ask(f"SELECT date_trunc('hour', InvoiceDate::TIMESTAMP), count(*) FROM ({lines}) GROUP BY 1")
        )
        hour, hours = first.replace(minute=0, second=0), []
        while hour + timedelta(hours=1) <= newest - LATE:
            hours.append([f"{hour:%Y-%m-%dT%H:00:00}+0000", counts.get(hour, 0)])
            hour += timedelta(hours=1)
        return hours

    def _lines(self, since: str, until: str) -> str:
        clock = "strftime(InvoiceDate::TIMESTAMP, '%H:%M')"
        return (
            f"SELECT * FROM read_csv('{self.day}', all_varchar=true) WHERE {clock} >= '{since}' AND {clock} < '{until}'"
        )

    def _ask(self, question: str) -> list[tuple[Any, ...]]:
        with duckdb.connect() as db:
            return db.execute(question).fetchall()


@pytest.fixture
def shop(site: Site, retail_dir: Path) -> Iterator[Shop]:
    """A pipeline with a watermark over invoices, and the DAGs of its hours."""
    name = f"hours_{uuid.uuid4().hex[:6]}"
    (site.root / name).mkdir()
    watermark = {"eventTimeColumn": "InvoiceDate", "delayThreshold": f"{LATE.seconds} seconds"}
    document = site.document(name, watermark=watermark)
    document["schemas"]["line"] = LINE
    document["extract"]["connectionParams"] |= {"format": "csv", "header": "true"}
    site.write(name, document)
    file = site.airflow.dags / f"{name}_hours.py"
    file.write_text(HOURS.format(pipeline=name))
    for dag in (name, f"{name}_announce", f"{name}_hourly"):
        site.airflow.wait_dag(dag)
    site.airflow.unpause(name)
    yield Shop(site, name, retail_dir / "2010-12-01.csv")
    file.unlink()


@pytest.mark.timeout(1200)
def test_each_complete_hour_of_the_shop_starts_one_run(shop: Shop) -> None:
    site, name = shop.site, shop.pipeline
    airflow = site.airflow

    def announce() -> str:
        run_id = airflow.trigger(f"{name}_announce")
        assert airflow.wait_run(f"{name}_announce", run_id, seconds=240) == "success"
        return str(airflow.task_instance(f"{name}_announce", run_id, "announce")["state"])

    def runs() -> list[list[Any]]:
        found = airflow.api("GET", f"/dags/{name}_hourly/dagRuns")["dag_runs"]
        done = [run["dag_run_id"] for run in found if run["state"] == "success"]
        assert {run["state"] for run in found} <= {"success", "running", "queued"}
        return sorted(airflow.xcom(f"{name}_hourly", run_id, "hour") for run_id in done)

    shop.arrive("00:00", "11:30")
    morning = shop.complete_hours("11:30")
    assert announce() == "success"
    until(lambda: len(runs()) >= len(morning))
    # The hour of 11 still waits for what comes.
    assert runs() == morning
    assert announce() == "skipped"
    shop.arrive("11:30", "24:00")
    day = shop.complete_hours("24:00")
    assert len(day) > len(morning) > 1
    assert announce() == "success"
    until(lambda: len(runs()) >= len(day), 360)
    assert announce() == "skipped"
    assert runs() == day
    question = "SELECT DISTINCT state FROM etl.complete_partition WHERE pipeline_id = %s"
    assert site.rows(question, name) == [("announced",)]
