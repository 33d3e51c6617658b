"""What is said of a late run, by the ledger; and the guide's example."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.serialization.serialized_objects import DagSerialization
from ledger_rows import LedgerRows

from airflow_etl_provider.late_runs import tell_late_run

CONTEXT = {"dag_run": {"dag_run_id": "manual__1"}}


class Told(BaseNotifier):
    template_fields = ("text",)
    said: list[tuple[str, str]] = []  # noqa: RUF012 - of the class, as each notification has a notifier of its own

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def async_notify(self, context: Any) -> None:
        self.said.append((self.text, context["dag_run"]["dag_run_id"]))


def tell(pipeline: str = "orders", **notifier: Any) -> str:
    values = {"ledger_conn_id": "warehouse", "tracker_schema": "etl", "notifier": "", "notifier_kwargs": {}, **notifier}
    return asyncio.run(tell_late_run(pipeline, **values, context=dict(CONTEXT)))


def test_how_the_run_is_is_said(rows: LedgerRows) -> None:
    said = tell()
    assert said.startswith("orders is late: DAG run manual__1 has not ended. Its newest run r1 is running")
    assert "its last sign of life" in said
    assert tell("returns").endswith("No run was ever started in this ledger")
    rows.sql("UPDATE etl.pipeline_run SET state = 'registered', heartbeat_at = NULL")
    assert "is registered" in tell()
    assert "its driver has not come up" in tell()
    rows.sql("UPDATE etl.pipeline_run SET state = 'failed', ended_at = now(), error = '{\"what\": \"No disk\"}'")
    assert tell().endswith("is failed: No disk")


def test_a_notifier_gets_it_in_its_templates(rows: LedgerRows) -> None:
    Told.said.clear()
    said = tell(notifier=f"{__name__}.Told", notifier_kwargs={"text": "Wake up: {{ late_run }}"})
    assert Told.said == [(f"Wake up: {said}", "manual__1")]


def test_a_ledger_that_does_not_answer_or_is_not_there_is_no_reason_to_be_silent(
    database: Any, connections: Callable[..., None]
) -> None:
    connections(warehouse=database.airflow_uri)
    assert tell().endswith("No run was ever started in this ledger")
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        dead = f"postgres://me@127.0.0.1:{closed_soon.getsockname()[1]}/orders"
    connections(warehouse=dead)
    assert "orders is late" in tell()
    assert "How it is the ledger does not say" in tell()


def test_the_guides_example_is_a_dag_that_the_scheduler_reads(repository: Path) -> None:
    section = (repository / "docs" / "guides" / "watching.md").read_text().split("\n## Late runs\n")[1]
    names: dict[str, Any] = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    stored = DagSerialization.to_dict(names["dag"])
    assert "tell_late_run" in json.dumps(stored)
    assert DagSerialization.from_dict(stored).dag_id == "orders"
