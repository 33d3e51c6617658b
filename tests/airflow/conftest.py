"""Airflow without servers: connections come from the environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Airflow reads these when it is imported.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

import pytest
from ledger_rows import LedgerRows

# Without any of the words that log filters look for.
HIDDEN = "Pq7xQz-19/blue@harbour"


@pytest.fixture
def pipeline() -> dict[str, Any]:
    """A valid pipeline without variables."""
    return {
        "pipelineId": "orders",
        "name": "Orders, once",
        "mode": "streaming",
        "extract": {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "10"}},
        "load": {
            "sinkType": "postgresql",
            "table": "shop.orders",
            "writeMode": "append",
            "autoCreateTable": True,
            "credentialId": "warehouse",
        },
        "streamingConfigJson": {
            "checkpointLocation": "/tmp/checkpoints/orders",
            "queryName": "orders",
            "outputMode": "append",
            "triggerMode": "availablenow",
        },
    }


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define Airflow connections by their URI."""

    def define(**uris: str) -> None:
        for name, uri in uris.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", uri)

    return define


@pytest.fixture
def rows(database: Any, connections: Callable[..., None]) -> LedgerRows:
    """The ledger of the connection ``warehouse``, in which pipeline ``orders`` has started."""
    made = LedgerRows(database.airflow_uri)
    made.start()
    connections(warehouse=database.airflow_uri)
    return made


class Store(dict[str, Any]):
    """The task's state store, as a task sees it."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.fixture
def pushed() -> dict[str, Any]:
    """The XComs that a task has pushed itself, by key."""
    return {}


@pytest.fixture
def context(pushed: dict[str, Any]) -> dict[str, Any]:
    """What ``execute`` needs of a task's context."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    ti = SimpleNamespace(dag_id="orders", task_id="run", run_id="manual", map_index=-1, try_number=1, stats_tags={})
    ti.xcom_push = lambda key, value: pushed.update({key: value})
    return {"ti": ti, "outlet_events": OutletEventAccessors(), "task_state_store": Store()}


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent.parent
