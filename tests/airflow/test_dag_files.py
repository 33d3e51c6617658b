from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import SerializationError
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from airflow_etl_provider.dag_files import PipelineFile, dags_from_files, read_pipeline_files

SECRET = "Pq7xQz-19"


def build(file: PipelineFile) -> DAG:
    return DAG(dag_id=file.dag_id, schedule=None, params=file.params, doc_md=file.doc_md, tags=file.tags)


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def dags(folder: Path) -> dict[str, DAG]:
    return {dag.dag_id: dag for dag in dags_from_files(folder, build)}


def import_error(folder: Path, dag_id: str, *, dag_file: str) -> tuple[str, str]:
    """Store a DAG as the dag-processor does; return what it would list, and under which path."""
    dag = dags(folder)[f"{dag_id}.import-error"]
    dag.fileloc = str(folder.parent / Path(dag_file).name)
    dag.relative_fileloc = dag_file
    with pytest.raises(SerializationError) as raised:
        DagSerialization.to_dict(dag)
    assert dag.relative_fileloc is not None
    return dag.relative_fileloc, str(raised.value)


def test_a_good_file_is_a_dag_named_by_its_pipeline_id(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    write(tmp_path, "anything", pipeline)
    dag = dags(tmp_path)["orders"]
    assert "shop.orders" in (dag.doc_md or "")
    assert DagSerialization.to_dict(dag)["dag"]["dag_id"] == "orders"


def test_its_variables_can_be_changed_when_triggering(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["variables"] = {"root": "/data"}
    pipeline["streamingConfigJson"]["checkpointLocation"] = "${root}/orders"
    write(tmp_path, "orders", pipeline)
    assert dags(tmp_path)["orders"].params.dump() == {"variables": {"root": "/data"}, "resume": "none"}


def test_broken_files_break_only_their_own_dags(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    write(folder, "good", pipeline)
    write(folder, "typo", {**pipeline, "pipelineId": "typo", "extarct": {}})
    write(folder, "no-json", "{")
    found = dags(folder)
    assert set(found) == {"orders", "typo", "typo.import-error", "no-json", "no-json.import-error"}
    assert "extarct" in (found["typo"].doc_md or "")
    assert found["typo"].is_paused_upon_creation
    where, text = import_error(folder, "typo", dag_file="etl/etl_pipelines.py")
    assert where == "etl/pipelines/typo.json"
    assert "extarct" in text
    assert import_error(folder, "no-json", dag_file="etl_pipelines.py")[0] == "pipelines/no-json.json"


def test_what_is_not_supported_yet_is_an_error_too(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["mode"] = "batch"
    write(tmp_path, "orders", pipeline)
    assert "mode batch: not supported yet" in import_error(tmp_path, "orders", dag_file="etl_pipelines.py")[1]


def test_two_files_with_one_pipeline_id_are_both_broken(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    write(tmp_path, "a", pipeline)
    write(tmp_path, "b", pipeline)
    files = read_pipeline_files(tmp_path)
    assert [file.dag_id for file in files] == ["orders.a", "orders.b"]
    assert all("more than once" in file.error for file in files)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"", b"null", b"[1]", b'{"pipelineId": 7}', b'{"pipelineId": "a/b c"}', b"[" * 100_000],
    ids=["not UTF-8", "empty", "null", "array", "id not text", "odd id", "deep"],
)
def test_whatever_a_file_holds_it_is_one_broken_dag(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    assert [bool(file.error) for file in read_pipeline_files(tmp_path)] == [True]
    assert len(dags(tmp_path)) == 2


def test_a_secret_in_a_file_is_refused_and_not_shown(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["load"]["connectionParams"] = {"password": SECRET, "url": f"postgres://u:{SECRET}@h/d"}
    write(tmp_path, "orders", pipeline)
    _, text = import_error(tmp_path, "orders", dag_file="etl_pipelines.py")
    assert "credentialId" in text
    assert SECRET not in text
    assert SECRET not in (dags(tmp_path)["orders"].doc_md or "")


MEASURE = """
import sys, time
import airflow.sdk, airflow.providers.apache.spark.operators.spark_submit
before = time.perf_counter()
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), {"__name__": "etl_pipelines", "__file__": sys.argv[1]})
print(time.perf_counter() - before)
print(*(name for name in ("pyspark", "pandas", "pyarrow", "numpy") if name in sys.modules))
"""


def test_parsing_is_cheap_and_loads_no_spark(tmp_path: Path, repository: Path, pipeline: dict[str, Any]) -> None:
    """Less than 100 ms a pipeline beyond Airflow's own import; pydantic's models are built once, for all of them."""
    shutil.copy(repository / "dags" / "etl_pipelines.py", tmp_path)
    (tmp_path / "pipelines").mkdir()
    count = 20
    for number in range(count):
        write(tmp_path / "pipelines", f"p{number}", {**pipeline, "pipelineId": f"p{number}"})
    dag_file = str(tmp_path / "etl_pipelines.py")
    done = subprocess.run([sys.executable, "-c", MEASURE, dag_file], check=True, capture_output=True, text=True)
    seconds, modules = done.stdout.splitlines()[-2:]
    assert modules == ""
    assert float(seconds) / count < 0.1


def test_the_shipped_examples_are_valid(repository: Path) -> None:
    files = read_pipeline_files(repository / "dags" / "pipelines")
    assert files
    assert [file.error for file in files] == [""] * len(files)
