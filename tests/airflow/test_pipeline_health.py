"""The health of pipelines in Airflow: the operator, and the DAG that reports."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from ledger_rows import LedgerRows

from airflow_etl_provider.operators.pipeline_health import PipelineHealthOperator

if TYPE_CHECKING:
    from tests.conftest import Database

CONFIG = {
    "pipelineId": "orders",
    "mode": "streaming",
    "extract": {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "10"}},
    "load": {"sinkType": "postgresql", "table": "orders", "credentialId": "warehouse"},
    "streamingConfigJson": {"checkpointLocation": "/c", "queryName": "orders"},
}


@pytest.fixture
def rows(database: Database, connections: Callable[..., None]) -> LedgerRows:
    made = LedgerRows(database.airflow_uri)
    for pipeline in ("orders", "returns"):
        made.start(pipeline, f"run of {pipeline}")
        made.commit(0, pipeline, f"run of {pipeline}")
    request = "UPDATE etl.pipeline_run SET request = jsonb_set(request, '{config}', %s::jsonb)"
    made.sql(request, json.dumps(CONFIG))
    connections(warehouse=database.airflow_uri)
    return made


def examine(context: Any, **arguments: Any) -> list[dict[str, Any]]:
    operator = PipelineHealthOperator(
        task_id="examine",
        **{"pipelines": "orders, returns", "thresholds": {"max_age": "1 hour", "gap_window": "1 day"}, **arguments},
    )
    return operator.execute(context)


def test_nothing_is_wrong(rows: LedgerRows, context: Any) -> None:
    assert examine(context) == []


def test_what_is_wrong_with_one_does_not_keep_it_from_the_next(rows: LedgerRows, context: Any) -> None:
    rows.commit(2, "orders", "run of orders")
    rows.sql("UPDATE etl.pipeline_run SET request = '{\"config\": {\"mode\": 1}}' WHERE pipeline_id = 'returns'")
    found = examine(context, pipelines=["returns", "orders"])
    assert [(one["pipeline"], one["check"], one["state"]) for one in found] == [
        ("returns", "configuration", "ill"),
        ("orders", "gaps", "ill"),
    ]
    assert "micro-batch 1 of query q is not in the ledger" in found[1]["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pipelines": ["oders"]}, "pipelines such as orders"),
        ({"thresholds": {"max_age": "soon"}}, "max_age"),
        ({"thresholds": {"max_agee": "1 hour"}}, "max_agee"),
        ({"tracker_schema": "elsewhere"}, "elsewhere"),
        ({"ledger_conn_id": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_looked_at_fails(rows: LedgerRows, context: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        examine(context, **arguments)


@pytest.fixture
def file(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "dags" / "etl_pipeline_health.py"))


def test_the_dag_is_a_dag(file: dict[str, Any]) -> None:
    [dag] = [value for value in file.values() if isinstance(value, DAG)]
    stored = DagSerialization.to_dict(dag)["dag"]
    assert stored["dag_id"] == "etl_pipeline_health"
    assert {task["__var"]["task_id"] for task in stored["tasks"]} == {"list_pipelines", "examine", "report"}


def test_all_pipelines_are_looked_at(rows: LedgerRows, file: dict[str, Any]) -> None:
    listed = file["list_pipelines"].function
    params = {"ledger_conn_id": "warehouse", "tracker_schema": "etl", "pipelines": []}
    assert listed(params) == [["orders"], ["returns"]]
    assert listed({**params, "pipelines": ["returns"]}) == [["returns"]]
    many = [f"p{number}" for number in range(450)]
    groups = listed({**params, "pipelines": many})
    assert [len(group) for group in groups] == [3] * 150
    assert [name for group in groups for name in group] == many


def test_the_report_fails_with_all_findings(file: dict[str, Any]) -> None:
    report = file["report"].function
    finding = {"pipeline": "orders", "check": "gaps", "state": "ill", "message": "a hole"}

    groups = [["orders"], ["returns"]]
    assert report(groups, [[], []]) is None
    assert report([], None) is None
    both = [[finding], [{**finding, "pipeline": "returns"}]]
    with pytest.raises(AirflowFailException, match=r"2 findings:\n  orders, gaps \(ill\): a hole\n  returns, gaps"):
        report(groups, iter(both))
    with pytest.raises(AirflowFailException) as many:
        report(groups, [[finding] * 59 + [{**finding, "message": "unseen"}], []])
    first, *named, last = str(many.value).splitlines()
    assert first == "60 findings:"
    assert named == ["  orders, gaps (ill): a hole"] * 50
    assert last.startswith("  and 10 more: see")
    with pytest.raises(AirflowFailException, match="1 of 2 tasks examine have failed"):
        report(groups, [[]])
    with pytest.raises(AirflowFailException, match="could not be listed"):
        report(None, None)
