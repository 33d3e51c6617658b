"""One real Airflow, one real PostgreSQL; every test has pipelines of its own in the shared DAG folder."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.airflow import Airflow
from sandbox.ports import free_port
from sandbox.postgres import PostgresServer
from sandbox.statsd import StatsdServer

TASK = "run_pipeline"

# A task that never ends by itself, to be watched and killed; its Spark UI is on a known port.
ENDLESS_DAG = """
from airflow.sdk import DAG
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

with DAG("endless", schedule=None, catchup=False):
    StreamingPipelineOperator(
        task_id="run_pipeline",
        pipeline={pipeline!r},
        run_forever=True,
        conf={{"spark.ui.enabled": "true", "spark.ui.port": "{port}"}},
    )
"""

WATCH_DAG = """
from airflow.sdk import DAG
from airflow_etl_provider.sensors.dead_letter_depth import DeadLetterDepthSensor

with DAG("watch_letters", schedule=None, catchup=False, params={"pipeline": ""}, is_paused_upon_creation=False):
    DeadLetterDepthSensor(
        task_id="drained", pipeline="{{ params.pipeline }}", at_most=0, deferrable=True, poke_interval=1
    )
"""


@dataclass(frozen=True)
class Site:
    """What the tests work with."""

    airflow: Airflow
    server: PostgresServer
    root: Path
    spark_ui: str
    statsd: StatsdServer

    @property
    def pipelines(self) -> Path:
        return self.airflow.dags / "pipelines"

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.server.connect("warehouse") as conn:
            return conn.execute(query, values).fetchall()  # type: ignore[arg-type]

    def add_connection(self, name: str, server: PostgresServer, database: str) -> None:
        """Let Airflow know a database as the connection ``name``."""
        place = {"host": "127.0.0.1", "port": server.port, "schema": database}
        login = {"login": server.user, "password": server.password}
        self.airflow.api("POST", "/connections", {"connection_id": name, "conn_type": "postgres", **place, **login})

    def document(self, name: str, **streaming: Any) -> dict[str, Any]:
        """Return a pipeline that appends the JSON lines in ``<root>/<name>`` to ``shop.<name>``."""
        return {
            "pipelineId": name,
            "mode": "streaming",
            "schemas": {"line": "id BIGINT, item STRING"},
            "extract": {
                "sourceType": "file",
                "schemaName": "line",
                "connectionParams": {"path": str(self.root / name), "format": "json"},
            },
            "load": {
                "sinkType": "postgresql",
                "table": f"shop.{name}",
                "writeMode": "append",
                "autoCreateTable": True,
                "credentialId": "warehouse",
            },
            "streamingConfigJson": {
                "checkpointLocation": str(self.root / "checkpoints" / name),
                "queryName": name,
                "triggerMode": "availablenow",
                **streaming,
            },
        }

    def add_pipeline(self, prefix: str, **changes: Any) -> str:
        """Drop a pipeline file; return its id when Airflow has its DAG."""
        name = f"{prefix}_{uuid.uuid4().hex[:6]}"
        (self.root / name).mkdir()
        self.write(name, {**self.document(name), **changes})
        self.airflow.wait_dag(name)
        self.airflow.unpause(name)
        return name

    def write(self, name: str, document: dict[str, Any] | str) -> None:
        """Write a pipeline file as people should: in one step."""
        unfinished = self.root / f"{name}.unfinished"
        unfinished.write_text(document if isinstance(document, str) else json.dumps(document))
        unfinished.replace(self.pipelines / f"{name}.json")

    def add_lines(self, name: str, *ids: int) -> None:
        unfinished = self.root / f"{uuid.uuid4().hex}.json"
        unfinished.write_text("".join(json.dumps({"id": i, "item": f"item {i}"}) + "\n" for i in ids))
        unfinished.replace(self.root / name / unfinished.name)

    def run(self, dag_id: str) -> tuple[str, str]:
        """Trigger, wait; return the run's id and how it ended."""
        run_id = self.airflow.trigger(dag_id)
        return run_id, self.airflow.wait_run(dag_id, run_id, seconds=420)

    def log(self, dag_id: str, run_id: str, try_number: int = 1) -> str:
        return self.airflow.task_log(dag_id, run_id, TASK, try_number=try_number)

    def target_events(self, name: str) -> list[dict[str, Any]]:
        """Return the asset events of a pipeline's target table, oldest first."""
        # By the table's name: Airflow answers with the first fifty events of those asked for.
        told = self.airflow.api("GET", "/assets/events", order_by="timestamp", name_pattern=f"/warehouse/shop/{name}")
        events: list[dict[str, Any]] = told["asset_events"]
        return [event for event in events if str(event["uri"]).endswith(f"/warehouse/shop/{name}")]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    home = root / "airflow"
    (home / "dags" / "pipelines").mkdir(parents=True)
    for name in ("pipelines", "dead_letter_replay", "batch_tracker_cleanup", "pipeline_health"):
        shutil.copy(Path(__file__).resolve().parents[2] / "dags" / f"etl_{name}.py", home / "dags")
    (home / "dags" / "watch_letters.py").write_text(WATCH_DAG)
    ui = free_port()
    with PostgresServer() as server, StatsdServer("airflow.etl.") as statsd:
        server.create_database("warehouse")
        with server.connect("warehouse", autocommit=True) as conn:
            conn.execute("CREATE SCHEMA shop")
        connections = {
            "warehouse": server.airflow_uri("warehouse"),
            "spark_default": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        }
        server.create_database("airflow")
        metadata = server.uri("airflow").replace("postgresql://", "postgresql+psycopg2://")
        airflow = Airflow(home, connections=connections, metadata=metadata, environ=_metrics(statsd.port))
        site = Site(airflow, server, root, f"http://127.0.0.1:{ui}", statsd)
        (root / "endless").mkdir()
        document = site.document("endless", triggerMode="processingtime=1 second")
        (home / "dags" / "endless.py").write_text(ENDLESS_DAG.format(pipeline=document, port=ui))
        with airflow:
            yield site


def _metrics(port: int) -> dict[str, str]:
    settings = {
        "STATSD_ON": "True",
        "STATSD_HOST": "127.0.0.1",
        "STATSD_PORT": str(port),
        "STATSD_INFLUXDB_ENABLED": "True",
        "METRICS_ALLOW_LIST": r"^etl\.",
    }
    return {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}
