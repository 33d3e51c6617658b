"""In a real Airflow: from a commit to the end of the task that waits for it, in three ways to wait."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import median
from time import sleep, time
from typing import Any

from report import Figure

from sandbox.airflow import Airflow
from sandbox.postgres import PostgresServer

_DAG = "waits"
_POKE_SECONDS = 10
# Before that the trigger of a sensor does not fire: airflow_etl_provider.triggers.ledger.SETTLING_SECONDS.
_SETTLED_SECONDS = 12
# The state in which each waits, and how.
_WAYS = {"from_trigger": "deferred", "resumed": "deferred", "poking": "running"}
_FILE = f"""
from airflow.sdk import DAG
from airflow_etl_provider.sensors.streaming_query_progress import StreamingQueryProgressSensor

with DAG({_DAG!r}, schedule=None, params={{"batch": 0}}, is_paused_upon_creation=False):
    waits = {{"pipeline": "orders", "ledger_conn_id": "sensors", "batch_id": "{{{{ params.batch }}}}"}}
    StreamingQueryProgressSensor(
        task_id="from_trigger", deferrable=True, poke_interval=86400, end_from_trigger=True, **waits
    )
    StreamingQueryProgressSensor(task_id="resumed", deferrable=True, poke_interval=86400, **waits)
    StreamingQueryProgressSensor(task_id="poking", deferrable=False, poke_interval={_POKE_SECONDS}, **waits)
"""
_DATABASE = "tasks"


def figures(server: PostgresServer, rounds: int) -> Iterator[Figure]:
    """Measure, and yield the medians of ``rounds``."""
    for name in (_DATABASE, "airflow"):
        server.create_database(name)
    metadata = server.uri("airflow").replace("postgresql://", "postgresql+psycopg2://")
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder:
        home = Path(folder)
        (home / "dags").mkdir()
        (home / "dags" / "waits.py").write_text(_FILE)
        with Airflow(home, connections={"sensors": server.airflow_uri(_DATABASE)}, metadata=metadata) as airflow:
            airflow.wait_dag(_DAG)
            seconds = _measure(airflow, server, rounds)
    told = {
        "from_trigger": "ended by the triggerer (TaskSuccessEvent)",
        "resumed": "resumed on a worker",
        "poking": f"poking every {_POKE_SECONDS} s",
    }
    poking = seconds["poking"]
    for way, took in seconds.items():
        name = f"from a commit to the end of the sensor's task, {told[way]}, median"
        yield Figure(name, took, "s", told["poking"], took / poking, 1 if way != "poking" else None, less=True)


def _measure(airflow: Airflow, server: PostgresServer, rounds: int) -> dict[str, float]:
    # Airflow reads its settings when it is imported.
    from tests.airflow.ledger_rows import LedgerRows

    rows = LedgerRows(server.airflow_uri(_DATABASE))
    rows.start()
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    for batch in range(rounds + 1):
        run_id = airflow.trigger(_DAG, {"batch": batch})
        for way, state in _WAYS.items():
            airflow.wait_task(_DAG, run_id, way, state, seconds=300)
        # Each has looked once, a trigger may fire, and a poking one is somewhere between two looks.
        sleep(_SETTLED_SECONDS + batch * 1.7)
        committed = time()
        rows.commit(batch)
        assert airflow.wait_run(_DAG, run_id, seconds=300) == "success"
        for way in _WAYS:
            ended = _ended(airflow.task_instance(_DAG, run_id, way))
            seconds[way].append(ended - committed)
        print(f"round {batch}: " + ", ".join(f"{way} {taken[-1]:.2f} s" for way, taken in seconds.items()), flush=True)
    return {way: median(taken[1:]) for way, taken in seconds.items()}


def _ended(task: dict[str, Any]) -> float:
    return datetime.fromisoformat(task["end_date"]).timestamp()
