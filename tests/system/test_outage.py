"""A scheduled pipeline whose database goes away under it, and comes back; Airflow's own metadata is elsewhere."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sandbox.postgres import PostgresServer

if TYPE_CHECKING:
    from tests.system.conftest import Site

TASK = "run_pipeline"
DAG = """
from airflow.sdk import DAG
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

with DAG({name!r}, schedule="@continuous", start_date=__import__("datetime").datetime(2026, 1, 1), max_active_runs=1):
    StreamingPipelineOperator(task_id="run_pipeline", pipeline={pipeline!r}, breaker_open="skip", retries=0)
"""
# A driver's two attempts are below the threshold: its run fails, and so does the next; the third opens the breaker.
GUARD = {
    "retryConfig": {"strategy": "fixed", "maxAttempts": 2, "initialDelayMs": 200, "jitter": False},
    "circuitBreakerConfig": {"failureThreshold": 3, "resetTimeoutSeconds": 12},
}


@dataclass(frozen=True)
class Scheduled:
    """A DAG that Airflow starts again as soon as it has ended, and its target's server."""

    site: Site
    target: PostgresServer
    name: str

    def runs(self) -> list[tuple[str, str]]:
        """Return the runs that have ended, oldest first, each with its task's state."""
        found = self.site.airflow.api("GET", f"/dags/{self.name}/dagRuns", order_by="run_after", limit=100)["dag_runs"]
        ended = [run["dag_run_id"] for run in found if run["state"] in ("success", "failed")]
        return [(run, self.site.airflow.task_instance(self.name, run, TASK)["state"]) for run in ended]

    def wait(self, wanted: Callable[[list[str]], bool], what: str, seconds: float = 420) -> list[tuple[str, str]]:
        """Wait until the states of the ended runs are as wanted; return the runs."""
        deadline = time.monotonic() + seconds
        runs = self.runs()
        while not wanted([state for _, state in runs]):
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s: {runs}"
            time.sleep(0.5)
            runs = self.runs()
        return runs

    def ids(self) -> list[tuple[Any, ...]]:
        with self.target.connect("orders") as conn:
            return conn.execute("SELECT id FROM shop.orders ORDER BY id").fetchall()

    def breakers(self) -> list[str]:
        """Return Airflow's Variables that keep a breaker."""
        kept = self.site.airflow.api("GET", "/variables")["variables"]
        return [one["key"] for one in kept if one["key"].startswith("etl_circuit_breaker_")]

    def stop_under_a_driver(self) -> None:
        """Take the database away while a driver waits for its target's lock, rows in its hands."""
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'shop.orders'::regclass"
        with (
            suppress(psycopg.OperationalError),  # theirs end with the server
            self.target.connect("orders") as holder,
            self.target.connect("orders", autocommit=True) as watcher,
        ):
            holder.execute("LOCK TABLE shop.orders IN ACCESS EXCLUSIVE MODE")
            self.site.add_lines(self.name, 3, 4)
            deadline = time.monotonic() + 240
            while not watcher.execute(waits).fetchone():
                assert time.monotonic() < deadline, "no driver wants the table"
                time.sleep(0.1)
            self.target.stop()


@pytest.fixture
def scheduled(site: Site) -> Iterator[Scheduled]:
    name = f"outage_{uuid.uuid4().hex[:6]}"
    (site.root / name).mkdir()
    with PostgresServer() as target:
        target.create_database("orders")
        with target.connect("orders", autocommit=True) as conn:
            conn.execute("CREATE SCHEMA shop")
        site.add_connection(name, target, "orders")
        document = {**site.document(name), "errorHandlingConfig": GUARD}
        document["load"] |= {"table": "shop.orders", "credentialId": name}
        file = site.airflow.dags / f"{name}.py"
        file.write_text(DAG.format(name=name, pipeline=document))
        site.airflow.wait_dag(name)
        made = Scheduled(site, target, name)
        yield made
        site.airflow.api("PATCH", f"/dags/{name}", {"is_paused": True})
        _wait_idle(site, name)
        file.unlink()
        site.airflow.api("DELETE", f"/connections/{name}")


def _wait_idle(site: Site, name: str) -> None:
    deadline = time.monotonic() + 300
    while left := site.airflow.api("GET", f"/dags/{name}/dagRuns", state=["queued", "running"])["dag_runs"]:
        assert time.monotonic() < deadline, f"these runs do not end: {left}"
        time.sleep(0.5)


@pytest.mark.timeout(1200)
def test_a_schedule_outlives_its_database(scheduled: Scheduled) -> None:
    site, name = scheduled.site, scheduled.name
    site.add_lines(name, 1, 2)
    site.airflow.unpause(name)
    scheduled.wait(lambda states: "success" in states, "a first run")
    scheduled.stop_under_a_driver()

    scheduled.wait(lambda states: states.count("skipped") >= 3, "three skipped runs")
    runs = [run for run in scheduled.runs() if run[1] != "success"]
    assert [state for _, state in runs[:5]] == ["failed", "failed", "skipped", "skipped", "skipped"]
    _see_the_failures(scheduled, [run for run, _ in runs[:2]])
    _see_the_skips(scheduled, [run for run, _ in runs[2:5]])
    [variable] = scheduled.breakers()

    before = len(scheduled.runs())
    scheduled.target.start()
    runs = scheduled.wait(lambda states: "success" in states[before:], "a run that comes through")
    assert {state for _, state in runs[before:]} <= {"skipped", "success"}
    assert scheduled.ids() == [(1,), (2,), (3,), (4,)]
    assert variable not in scheduled.breakers()
    _see_the_metrics(scheduled)


def _see_the_failures(scheduled: Scheduled, runs: list[str]) -> None:
    under_way, without_driver = (scheduled.site.log(scheduled.name, run) for run in runs)
    assert "event=retry kind=write attempt=1 of=2 wait_seconds=0.2" in under_way
    assert "5 (DATABASE_UNREACHABLE)" in under_way
    assert "5 (DATABASE_UNREACHABLE)" in without_driver
    assert "run_pipeline.py" not in without_driver  # the command of a driver


def _see_the_skips(scheduled: Scheduled, runs: list[str]) -> None:
    for run in runs:
        log = scheduled.site.log(scheduled.name, run)
        assert "breaker open until 20" in log
        assert "run_pipeline.py" not in log
        told = scheduled.site.airflow.xcom(scheduled.name, run, TASK, "breaker")
        assert told["system"] == f"postgresql://127.0.0.1:{scheduled.target.port}/orders"
        assert told["until"] in log
        assert told["answer"] == "skip"
        assert scheduled.target.password not in f"{told} {log}"


def _see_the_metrics(scheduled: Scheduled) -> None:
    statsd, run = scheduled.site.statsd, {"pipeline_id": scheduled.name}
    breaker = {"system": f"postgresql_127.0.0.1_{scheduled.target.port}_orders"}
    assert len(statsd.values("airflow.etl.run.ended", exit="breaker_open", **run)) >= 3
    assert sum(statsd.values("airflow.etl.run.retries", kind="write", **run)) == 1
    assert 2 in statsd.values("airflow.etl.run.attempts", **run)
    assert statsd.values("airflow.etl.breaker.changes", to="open", **breaker, **run)
    statsd.wait("airflow.etl.breaker.changes", to="closed", **breaker, **run)
    assert 1 in statsd.values("airflow.etl.breaker.open", **breaker)
    assert statsd.values("airflow.etl.breaker.open", **breaker)[-1] == 0
