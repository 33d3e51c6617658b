"""What the operator does while its target keeps failing, in a real task: it waits or skips, and starts no driver."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import spark_environ

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Site:
    """An Airflow without a scheduler: its database and one DAG."""

    home: Path
    server: PostgresServer

    def start(self, pipeline: dict[str, Any], when_open: str) -> subprocess.Popen[str]:
        environ = {
            **spark_environ(),
            **_airflow(self.home),
            "PYTHONPATH": str(HERE.parent.parent),
            "GUARDED_PIPELINE": json.dumps(pipeline),
            "GUARDED_WHEN_OPEN": when_open,
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[1]"}),
            "AIRFLOW_CONN_WAREHOUSE": self.server.airflow_uri("warehouse"),
        }
        return subprocess.Popen(
            [sys.executable, str(self.home / "dags" / "guarded_dag.py")],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, pipeline: dict[str, Any], when_open: str) -> str:
        """Run the DAG once; return what it said."""
        with self.start(pipeline, when_open) as process:
            said, _ = process.communicate(timeout=300)
        return said

    def metadata(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.home / "airflow.db") as conn:
            return conn.execute(query).fetchall()

    @property
    def state(self) -> str:
        """Of the newest run of the task."""
        return str(self.metadata("SELECT state FROM task_instance ORDER BY queued_dttm DESC, start_date DESC")[0][0])

    @property
    def xcom(self) -> dict[str, Any]:
        found = self.metadata("SELECT value FROM xcom WHERE key = 'breaker' ORDER BY timestamp DESC")
        value = json.loads(found[0][0])
        return dict(json.loads(value) if isinstance(value, str) else value)

    @property
    def variables(self) -> list[str]:
        return [key for (key,) in self.metadata("SELECT key FROM variable")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "guarded_dag.py").write_text((HERE / "guarded_dag.py").read_text())
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env={**os.environ, **_airflow(home)},
        check=True,
        capture_output=True,
    )
    with PostgresServer() as server:
        server.create_database("warehouse")
        yield Site(home, server)


def _airflow(home: Path) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
    }


@pytest.fixture
def guarded(tmp_path: Path, pipeline: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A pipeline of files with a circuit breaker."""

    def made(**breaker: Any) -> dict[str, Any]:
        inbox = tmp_path / "inbox"
        inbox.mkdir()
        (inbox / "1.json").write_text('{"id": 1}\n{"id": 2}\n')
        document = {
            **pipeline,
            "schemas": {"row": "id INT"},
            "extract": {
                "sourceType": "file",
                "schemaName": "row",
                "connectionParams": {"path": str(inbox), "format": "json"},
            },
            "errorHandlingConfig": {"circuitBreakerConfig": breaker},
        }
        document["load"] = {**document["load"], "table": "public.orders"}
        document["streamingConfigJson"]["checkpointLocation"] = str(tmp_path / "checkpoint")
        return document

    return made


def test_a_dead_target_is_left_alone_and_comes_back_by_itself(site: Site, guarded: Callable[..., Any]) -> None:
    long = guarded(failureThreshold=1, resetTimeoutSeconds=3600)
    site.server.stop()
    _skipped(site, long)
    assert site.xcom["system"] == f"postgresql://127.0.0.1:{site.server.port}/warehouse"
    assert site.xcom["answer"] == "skip"
    [variable] = site.variables
    assert variable.startswith("etl_circuit_breaker_")
    site.server.start()
    _skipped(site, long)  # without asking, else it would have found the server
    site.server.stop()

    # Its time is over for a pipeline that waits a second: it is tried until the server is back.
    short = {**long, "errorHandlingConfig": {"circuitBreakerConfig": {"resetTimeoutSeconds": 1}}}
    told: list[str] = []
    with site.start(short, "wait") as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if "breaker open until" in line and not any("breaker open until" in before for before in told[:-1]):
                site.server.start()
    said = "".join(told)
    assert site.state == "success", said
    assert site.variables == []
    with site.server.connect("warehouse") as conn:
        assert conn.execute("SELECT id FROM public.orders ORDER BY id").fetchall() == [(1,), (2,)]


def _skipped(site: Site, document: dict[str, Any]) -> None:
    said = site.run(document, "skip")
    assert site.state == "skipped", said
    assert "breaker open until 20" in said
    assert "run_pipeline.py" not in said  # the command of a driver
    assert site.server.password not in said


def test_the_ledgers_breaker_makes_the_next_run_skip(site: Site, guarded: Callable[..., Any]) -> None:
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute("CREATE TABLE public.second (id integer)")
        conn.execute(
            "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END$$"
        )
        conn.execute("CREATE TRIGGER full_disk BEFORE INSERT ON public.second EXECUTE FUNCTION full_disk()")
    document = {**guarded(failureThreshold=1, resetTimeoutSeconds=3600), "pipelineId": "second"}
    document["load"]["table"] = "public.second"
    said = site.run(document, "skip")
    assert site.state == "skipped", said  # the driver has found it out: exit code 16
    with site.server.connect("warehouse", autocommit=True) as conn:
        assert conn.execute("SELECT exit_code FROM etl.pipeline_run WHERE pipeline_id = 'second'").fetchall() == [(16,)]
        _skipped(site, document)
        assert conn.execute("SELECT count(*) FROM etl.pipeline_run WHERE pipeline_id = 'second'").fetchone() == (1,)
        conn.execute("DROP TRIGGER full_disk ON public.second")
        conn.execute("UPDATE etl.circuit_breaker SET reopen_at = now()")
        said = site.run(document, "skip")
        assert site.state == "success", said
        assert conn.execute(
            "SELECT from_state, to_state FROM etl.circuit_breaker_event ORDER BY event_id"
        ).fetchall() == [
            ("closed", "open"),
            ("open", "half-open"),
            ("half-open", "closed"),
        ]
        assert conn.execute("SELECT id FROM public.second ORDER BY id").fetchall() == [(1,), (2,)]
