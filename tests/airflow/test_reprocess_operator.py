"""The operator that does micro-batches again, with real drivers: what it hands on, goes on with, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from ledger_rows import LedgerRows

from airflow_etl_provider.operators.reprocess import ReprocessOperator
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from sandbox.spark_cluster import spark_environ


@pytest.fixture
def orders(
    database: Any,
    connections: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    context: Any,
    pipeline: dict[str, Any],
) -> dict[str, Any]:
    """A pipeline that has committed three micro-batches of two rows each, the last one with a letter."""
    # Without SPARK_HOME pyspark's script looks for itself, and finds nothing in a folder with a space in its name.
    for name in ("JAVA_HOME", "SPARK_HOME"):
        monkeypatch.setenv(name, spark_environ()[name])
    connections(spark_default=json.dumps({"conn_type": "spark", "host": "local[1]"}), warehouse=database.airflow_uri)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(3):
        lines = [json.dumps({"id": number * 2 + n}) for n in range(2)]
        (inbox / f"{number}.json").write_text("\n".join([*lines, *(["no json"] if number == 2 else [])]))
    pipeline["schemas"] = {"row": "id BIGINT"}
    params = {"path": str(inbox), "format": "json", "maxFilesPerTrigger": "1"}
    pipeline["extract"] = {"sourceType": "file", "schemaName": "row", "connectionParams": params}
    pipeline["load"] |= {"table": "public.result", "batchColumn": "etl_batch"}
    pipeline["streamingConfigJson"]["checkpointLocation"] = str(tmp_path / "checkpoint")
    StreamingPipelineOperator(task_id="run", pipeline=pipeline).execute({**context, "task_state_store": None})
    return pipeline


def reprocess(context: Any, **given: Any) -> dict[str, Any]:
    arguments = {"pipeline_id": "orders", "ledger_conn_id": "warehouse", **given}
    return ReprocessOperator(task_id="again", **arguments).execute(context)


def test_the_summary_is_the_result_and_a_retry_goes_on(orders: dict[str, Any], database: Any, context: Any) -> None:
    told = reprocess(context, batches="0-1", dry_run="True")
    assert json.loads(json.dumps(told)) == told
    assert (told["dry_run"], told["batches"], told["rows_before"], told["rows_after"]) == (True, 2, 4, 4)

    # As a table that somebody has touched: the second micro-batch is refused, behind the first.
    last = "SELECT query_id || '/1' FROM etl.batch_tracker WHERE batch_id = 0 AND pipeline_id = 'orders'"
    with database.connect(autocommit=True) as conn:
        conn.execute(f"INSERT INTO result SELECT 99, ({last})")
    with pytest.raises(AirflowFailException) as failed:
        reprocess(context, batches="0-1")
    assert "3 rows of the target name it" in str(failed.value)
    assert "18 (REPROCESS_REFUSED)" in str(failed.value)
    with database.connect(autocommit=True) as conn:
        conn.execute("DELETE FROM result WHERE id = 99")
    told = reprocess(context, batches="0-1")
    assert (told["batches"], told["rows_after"]) == (2, 4)
    with database.connect() as conn:
        found = conn.execute("SELECT batch_id, count(*) FROM etl.batch_reprocessed GROUP BY 1 ORDER BY 1").fetchall()
        assert found == [(0, 1), (1, 1)]
        assert conn.execute("SELECT id, count(*) FROM result GROUP BY 1 ORDER BY 1").fetchall() == [
            (n, 1) for n in range(6)
        ]
    # What has ended is not gone on with: a task that is cleared does it again.
    assert reprocess(context, batches="0-1")["reprocess_id"] != told["reprocess_id"]


def test_what_cannot_be_is_refused_before_anything_is_submitted(rows: LedgerRows, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="either batches, or since and until, or offsets"):
        reprocess(context)
    with pytest.raises(AirflowFailException, match="no micro-batches"):
        reprocess(context, batches="last")
    with pytest.raises(AirflowFailException, match="'shop' is not in the ledger"):
        reprocess(context, pipeline_id="shop", batches="1")


def test_it_survives_the_scheduler_and_is_templated() -> None:
    with DAG("repair", schedule=None) as dag:
        made = ReprocessOperator(
            task_id="again", pipeline_id="{{ params.pipeline }}", batches="{{ params.batches }}", dry_run="{{ 1 }}"
        )
    assert {"pipeline_id", "batches", "since", "until", "times", "query_id", "dry_run_only"} <= set(
        made.template_fields
    )
    assert made.batches == "{{ params.batches }}"
    told = DagSerialization.to_dict(dag)["dag"]["tasks"][0]["__var"]
    assert told["batches"] == "{{ params.batches }}"
