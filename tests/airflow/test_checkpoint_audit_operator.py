"""The operator that audits a checkpoint: parameters as templates give them, storages as Airflow reaches them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.io import attach
from airflow.sdk.io.store import _STORE_CACHE
from airflow.serialization.serialized_objects import DagSerialization
from ledger_rows import LedgerRows

from airflow_etl_provider.operators.checkpoint_audit import CheckpointAuditOperator
from spark_jobs.contracts.audit.report import BAD


@pytest.fixture
def folder(tmp_path: Path, rows: LedgerRows) -> Path:
    """The checkpoint of the ledger's query ``q``, with two committed micro-batches in both."""
    for number in (0, 1):
        rows.commit(number)
    rows.sql("UPDATE etl.pipeline_run SET state = 'finished', ended_at = now(), exit_code = 0")
    made = tmp_path / "orders"
    for name in ("offsets", "commits"):
        (made / name).mkdir(parents=True)
    (made / "metadata").write_text('{"id":"q"}')
    for number in (0, 1):
        end = json.dumps({"t": {"0": number + 1}})
        (made / "offsets" / f"{number}").write_text(f'v1\n{{"batchWatermarkMs":0,"batchTimestampMs":1}}\n{end}')
        (made / "commits" / f"{number}").write_text('v1\n{"nextBatchWatermarkMs":0}')
    rows.sql("UPDATE etl.pipeline_query SET checkpoint_location = %s", str(made))
    return made


def audit(context: Any, **arguments: Any) -> dict[str, Any]:
    return CheckpointAuditOperator(task_id="audit", **{"pipeline": "orders", **arguments}).execute(context)


def test_the_report_is_the_result(folder: Path, context: Any, pushed: dict[str, Any]) -> None:
    report = audit(context, ledger_conn_id="warehouse", checkpoint="", storage_conn_id="", fail_on=",".join(BAD))
    assert json.loads(json.dumps(report)) == report
    assert (report["state"], report["last_committed"], report["last_in_ledger"]) == ("consistent", 1, 1)
    assert report["checkpoint"] == str(folder)
    assert pushed == {}


def test_what_is_found_fails_the_task_with_advice_and_keeps_the_report(
    folder: Path, rows: LedgerRows, context: Any, pushed: dict[str, Any]
) -> None:
    rows.sql("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    with pytest.raises(AirflowFailException) as failed:
        audit(context)
    assert "orders is ahead: micro-batches 1 committed in the checkpoint and not in the ledger" in str(failed.value)
    assert "Was the database restored" in str(failed.value) or "was the database restored" in str(failed.value)
    assert "CHECKPOINT_MISMATCH" in str(failed.value)
    assert pushed["audit"]["state"] == "ahead"
    assert audit(context, fail_on=["lost"])["state"] == "ahead"
    assert audit(context, fail_on="lost, foreign")["findings"][0]["advice"]
    assert audit(context, fail_on="")["state"] == "ahead"


def test_a_source_that_cannot_be_asked_is_asked_again(
    folder: Path, rows: LedgerRows, context: Any, pipeline: dict[str, Any]
) -> None:
    options = {"kafka.bootstrap.servers": "127.0.0.1:1", "startingOffsets": "earliest"}
    extract = {"sourceType": "kafka", "topic": "t", "schema": "id BIGINT", "connectionParams": options}
    streaming = {**pipeline["streamingConfigJson"], "checkpointLocation": str(folder)}
    config = {**pipeline, "extract": extract, "streamingConfigJson": streaming}
    rows.sql("UPDATE etl.pipeline_run SET request = jsonb_set(request, '{config}', %s::jsonb)", json.dumps(config))
    with pytest.raises(AirflowException, match="orders is unknown") as failed:
        audit(context)
    assert not isinstance(failed.value, AirflowFailException)
    wanted = [state for state in BAD if state != "unknown"]
    assert audit(context, fail_on=wanted)["state"] == "unknown"


@pytest.fixture
def bucket(folder: Path) -> Iterator[Callable[[str | None], None]]:
    """Lets Airflow reach a copy of the checkpoint as ``s3://bucket/orders``, by a connection or by its default."""
    storage = fsspec.filesystem("memory")
    before = dict(_STORE_CACHE)
    # Airflow remembers a store that it could not reach.
    _STORE_CACHE.clear()
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe(f"/bucket/orders/{path.relative_to(folder)}", path.read_bytes())
    yield lambda conn_id: attach(protocol="s3", conn_id=conn_id, fs=storage) and None
    storage.store.clear()
    _STORE_CACHE.clear()
    _STORE_CACHE.update(before)


@pytest.mark.parametrize("conn_id", [None, "lake"])
def test_a_checkpoint_in_an_object_store(
    folder: Path, rows: LedgerRows, context: Any, bucket: Callable[[str | None], None], conn_id: str | None
) -> None:
    bucket(conn_id)
    rows.sql("UPDATE etl.pipeline_query SET checkpoint_location = 's3a://bucket/orders'")
    report = audit(context, storage_conn_id=conn_id)
    assert (report["state"], report["checkpoint"]) == ("consistent", "s3a://bucket/orders")
    assert audit(context, storage_conn_id=conn_id, checkpoint="s3://bucket/nothing", fail_on="")["state"] == "lost"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoint": "s3a://bucket/orders"}, "install s3fs"),
        ({"checkpoint": "s3a://bucket/orders", "storage_conn_id": "lake"}, "apache-airflow-providers-amazon"),
        ({"checkpoint": "hdfs://namenode/orders"}, "webhdfs://"),
        ({"checkpoint": "orders"}, "a relative path"),
        ({"checkpoint": "/not/mounted/here"}, "cannot be seen from here"),
        ({"pipeline": "oders"}, "pipelines such as orders"),
        ({"fail_on": "lost, losst"}, "'losst'"),
        ({"tracker_schema": "elsewhere"}, "elsewhere"),
        ({"ledger_conn_id": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_looked_at_fails(folder: Path, context: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        audit(context, **arguments)


def test_importing_it_brings_neither_spark_nor_fsspec() -> None:
    code = (
        "import airflow.sdk, sys; before = set(sys.modules)\n"
        "import airflow_etl_provider.operators.checkpoint_audit\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'pyspark', 'py4j', 'pandas', 'fsspec', 'confluent_kafka'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_example_of_the_reference_is_a_dag_that_looks(folder: Path, context: Any, repository: Path) -> None:
    page = (repository / "docs" / "reference" / "operator.md").read_text()
    section = page.partition("## `CheckpointAuditOperator`")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "operator.md", "exec"), names)
    [dag] = [value for value in names.values() if isinstance(value, DAG)]
    stored = DagSerialization.to_dict(dag)["dag"]
    [audit_task] = [task["__var"] for task in stored["tasks"] if task["__var"]["task_id"] == "audit"]
    assert audit_task["downstream_task_ids"] == ["run"]
    assert set(audit_task["fail_on"]) == set(BAD)
    assert dag.get_task("audit").execute(context)["state"] == "consistent"
