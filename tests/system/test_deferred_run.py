"""A task that waits in the triggerer for a driver on a real standalone cluster, in a real Airflow."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from test_kill_and_secrets import wait_for

from sandbox.jars import pyspark_home
from sandbox.java import java_home
from sandbox.spark_cluster import SparkCluster

if TYPE_CHECKING:
    from tests.system.conftest import Site

TASK = "run_pipeline"
STATES = "SELECT state FROM etl.pipeline_run WHERE pipeline_id = %s ORDER BY registered_at"

# Nobody looks a second time by the clock: who is woken, is woken by the commit of the run's end.
DAG = """
from datetime import timedelta

from airflow.sdk import DAG
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

with DAG({name!r}, schedule=None, is_paused_upon_creation=False):
    StreamingPipelineOperator(
        task_id="run_pipeline",
        pipeline={pipeline!r},
        spark_conn_id="spark_cluster",
        deferrable=True,
        run_forever=True,
        startup_timeout_seconds=86400,
        poll_interval=86400,
        driver_memory="1g",
        executor_memory="1g",
        total_executor_cores=1,
        conf={conf!r},
        execution_timeout=timedelta(seconds={seconds}),
    )
"""


@dataclass(frozen=True)
class Deferred:
    """Pipelines whose drivers run on the cluster."""

    site: Site
    conf: dict[str, str]

    def add(self, prefix: str, *, seconds: int = 3600, **streaming: Any) -> str:
        """Drop a DAG file; return the id of the DAG and of its pipeline.

        :param seconds: how long its task may take.
        """
        name = f"{prefix}_{uuid.uuid4().hex[:6]}"
        (self.site.root / name).mkdir()
        document = self.site.document(name, **streaming)
        file = self.site.airflow.dags / f"{name}.py"
        file.write_text(DAG.format(name=name, pipeline=document, conf=self.conf, seconds=seconds))
        self.site.airflow.wait_dag(name)
        return name

    def state(self, name: str, run_id: str) -> Any:
        return self.site.airflow.task_instance(name, run_id, TASK)["state"]

    def log(self, name: str, run_id: str, try_number: int = 1) -> str:
        return self.site.log(name, run_id, try_number)

    def drivers(self, name: str) -> list[psutil.Process]:
        """Return the running drivers of the pipeline's runs, JVM and Python."""
        runs = {run for (run,) in self.site.rows("SELECT run_id FROM etl.pipeline_run WHERE pipeline_id = %s", name)}
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if runs & set(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def written(self, name: str, *ids: int) -> bool:
        """Tell whether the lines are in the target, each once."""
        if self.site.rows("SELECT to_regclass(%s)", f"shop.{name}") == [(None,)]:
            return False
        found = self.site.rows(f"SELECT id FROM shop.{name} WHERE id = ANY(%s) ORDER BY id", list(ids))
        return found == [(i,) for i in sorted(ids)]


@pytest.fixture(scope="module")
def deferred(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deferred]:
    store = tmp_path_factory.mktemp("credentials") / "etl.jceks"
    provider = f"localjceks://file{store}"
    shell = [java_home() / "bin" / "java", "-cp", f"{pyspark_home()}/jars/*"]
    shell += ["org.apache.hadoop.security.alias.CredentialShell", "create", "etl.connection.warehouse"]
    uri = site.server.airflow_uri("warehouse")
    subprocess.run([*shell, "-value", uri, "-provider", provider], check=True, capture_output=True)
    with SparkCluster(workers=1, cores=4, memory="5g") as cluster:
        extra = json.dumps({"deploy-mode": "cluster", "rest-port": str(cluster.rest_port)})
        place = {"host": "spark://127.0.0.1", "port": cluster.port, "extra": extra}
        site.airflow.api("POST", "/connections", {"connection_id": "spark_cluster", "conn_type": "spark", **place})
        conf = {
            "spark.hadoop.hadoop.security.credential.provider.path": provider,
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
        }
        yield Deferred(site, conf)
        site.airflow.api("DELETE", "/connections/spark_cluster")


@pytest.mark.timeout(900)
def test_a_run_ends_well_while_its_triggerer_is_killed(deferred: Deferred) -> None:
    site, airflow = deferred.site, deferred.site.airflow
    name = deferred.add("let_go")
    site.add_lines(name, 1, 2, 3)
    run_id = airflow.trigger(name)
    airflow.wait_task(name, run_id, TASK, "deferred", seconds=300)
    links = airflow.links(name, run_id, TASK)
    assert links.keys() == {"Spark UI", "Pipeline", "Dead letters"}
    assert all(links.values())
    airflow.kill_component("triggerer")
    airflow.start_component("triggerer")
    assert airflow.wait_run(name, run_id, seconds=400) == "success", deferred.log(name, run_id)
    assert airflow.links(name, run_id, TASK) == links
    assert deferred.written(name, 1, 2, 3)
    assert site.rows(STATES, name) == [("finished",)]
    result = airflow.xcom(name, run_id, TASK)
    assert (result["rows"]["written"], result["ledger"]) == (3, "balanced")
    [event] = site.target_events(name)
    assert event["extra"]["run_id"] == result["run_id"]


@pytest.mark.timeout(1500)
def test_who_takes_over_harms_nobody_and_who_kills_stops_the_driver(deferred: Deferred) -> None:
    site, airflow = deferred.site, deferred.site.airflow
    name = deferred.add("endless", triggerMode="processingtime=1 second")
    site.add_lines(name, 1)
    run_id = airflow.trigger(name)
    airflow.wait_task(name, run_id, TASK, "deferred", seconds=300)
    wait_for(lambda: deferred.written(name, 1), "the first row", 300)

    hand_over(site, lambda: "trigger completed" in deferred.log(name, run_id))
    site.add_lines(name, 2)
    wait_for(lambda: deferred.written(name, 1, 2), "a row after the trigger was taken over", 120)
    assert deferred.state(name, run_id) == "deferred"
    assert site.rows(STATES, name) == [("running",)]

    airflow.clear(name, run_id)
    wait_for(lambda: site.rows(STATES, name) == [("fenced",), ("running",)], "the cleared task's own run", 400)
    airflow.wait_task(name, run_id, TASK, "deferred", seconds=300)
    site.add_lines(name, 3)
    wait_for(lambda: deferred.written(name, 1, 2, 3), "its rows", 300)

    assert deferred.drivers(name)
    airflow.mark(name, run_id, TASK, "failed")
    wait_for(lambda: not deferred.drivers(name), "the end of the drivers", 120)
    assert site.rows(STATES, name) == [("fenced",), ("fenced",)]
    # The right to commit is nobody's.
    assert site.rows("SELECT newest_run_id FROM etl.pipeline WHERE pipeline_id = %s", name) == [(None,)]


@pytest.mark.timeout(900)
def test_a_run_that_takes_too_long_is_stopped(deferred: Deferred) -> None:
    site, airflow = deferred.site, deferred.site.airflow
    name = deferred.add("slow", seconds=75, triggerMode="processingtime=1 second")
    site.add_lines(name, 1)
    run_id = airflow.trigger(name)
    airflow.wait_task(name, run_id, TASK, "deferred", seconds=300)
    wait_for(lambda: deferred.drivers(name), "a driver", 120)
    assert airflow.wait_run(name, run_id, seconds=400) == "failed"
    wait_for(lambda: not deferred.drivers(name), "the end of the drivers", 120)
    assert site.rows(STATES, name) == [("fenced",)]
    assert site.rows("SELECT newest_run_id FROM etl.pipeline WHERE pipeline_id = %s", name) == [(None,)]


def hand_over(site: Site, happened: Callable[[], bool]) -> None:
    """Start a second triggerer, and give it what the first one has: as the first one's late heartbeat would."""
    site.airflow.start_component("triggerer")
    with site.server.connect("airflow", autocommit=True) as metadata:

        def alive() -> list[tuple[Any, ...]]:
            return metadata.execute(
                "SELECT id FROM job WHERE job_type = 'TriggererJob' AND state = 'running' "
                "AND latest_heartbeat > now() - interval '20 seconds'"
            ).fetchall()

        def triggers() -> list[tuple[Any, ...]]:
            return metadata.execute("SELECT triggerer_id FROM trigger WHERE triggerer_id IS NOT NULL").fetchall()

        others = wait_for(lambda: set(alive()) - set(triggers()) if triggers() else None, "a second triggerer", 120)
        metadata.execute("UPDATE trigger SET triggerer_id = %s", others.pop())
        wait_for(happened, "the end of the first triggerer's trigger", 120)
