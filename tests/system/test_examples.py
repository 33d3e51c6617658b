"""The example DAGs, run as they stand in a real Airflow; each operator and sensor is in one."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import BaseOperator

from airflow_etl_provider.get_provider_info import get_provider_info
from sandbox.jars import jars
from sandbox.kafka import KafkaBroker, Record
from sandbox.places import REPOSITORY

if TYPE_CHECKING:
    from tests.system.conftest import Site

EXAMPLES = REPOSITORY / "airflow_etl_provider" / "example_dags"
PAGES = (*(REPOSITORY / "docs" / "reference").glob("*.md"), *(REPOSITORY / "docs" / "guides").glob("*.md"))
LINES = [
    '{"id": 1, "price": "9.50", "at": "2026-03-01T05:10:00Z"}',
    '{"id": 2, "price": "N/A", "at": "2026-03-01T06:20:00Z"}',
    '{"id": 3, "price": "3.00", "at": "2026-03-01T07:30:00Z"}',
]


def public_classes() -> list[str]:
    """Return the operators and sensors of the provider's modules, and the trigger that people write into a DAG."""
    named = [
        module
        for kind in ("operators", "sensors")
        for one in get_provider_info()[kind]
        for module in one["python-modules"]
    ]
    found = [
        name
        for module in map(importlib.import_module, named)
        for name, made in inspect.getmembers(module, inspect.isclass)
        if made.__module__ == module.__name__ and issubclass(made, BaseOperator)
    ]
    return [*found, "BatchCommittedTrigger", "LedgerHook"]


def test_each_class_has_an_example_and_a_page() -> None:
    used = {
        node.func.id
        for file in EXAMPLES.glob("example_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    told = "\n".join(page.read_text() for page in PAGES)
    classes = public_classes()
    assert len(classes) > 15
    assert [name for name in classes if name not in used] == []
    assert [name for name in classes if name not in told] == []


@pytest.fixture
def examples(site: Site) -> Iterator[None]:
    copies = [Path(shutil.copy(file, site.airflow.dags)) for file in sorted(EXAMPLES.glob("example_*.py"))]
    for name in ("example_orders", "example_orders_from_kafka", "example_upkeep"):
        site.airflow.wait_dag(name)
    yield
    for copy in copies:
        copy.unlink()


@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("examples")
def test_they_run_as_they_stand(site: Site, kafka: KafkaBroker, tmp_path: Path) -> None:
    airflow = site.airflow
    for name in ("example_orders", "example_orders_followed", "example_orders_of_an_hour"):
        airflow.unpause(name)
    folder = site.root / "example"
    (folder / "orders").mkdir(parents=True)
    (folder / "orders" / "1.json").write_text("\n".join(LINES))
    run_id = airflow.trigger("example_orders", {"folder": str(folder)})
    assert airflow.wait_run("example_orders", run_id, seconds=900) == "success"
    assert site.rows("SELECT id, price::float FROM example_orders ORDER BY id") == [(1, 9.5), (2, None), (3, 3.0)]
    assert airflow.xcom("example_orders", run_id, "repair")["replayed"] == 1
    assert airflow.xcom("example_orders", run_id, "audit")["state"] == "consistent"
    told = _results(site, "example_orders_followed", "follow")
    assert "rows" in str(told)
    # Two hours are complete: the third one still waits for late rows.
    hours = sorted(str(each)[:24] for each in _results(site, "example_orders_of_an_hour", "report", 2))
    assert hours == ["2026-03-01T05:00:00+0000", "2026-03-01T06:00:00+0000"]

    topic = kafka.create_topic("example-orders")
    kafka.produce(topic, [Record(line) for line in (LINES[0], LINES[2])])
    connector = ",".join(jar.as_uri() for jar in jars("spark-kafka"))
    form = {"brokers": kafka.bootstrap_servers, "topic": topic, "folder": str(folder / "kafka"), "jars": connector}
    _run(site, "example_orders_from_kafka", form)
    again = "SELECT id, etl_batch LIKE '%%/0' FROM example_orders_from_kafka ORDER BY id"
    assert site.rows(again) == [(1, True), (3, True)]

    run_id = _run(site, "example_upkeep", {"dry_run": True})
    assert json.loads(json.dumps(airflow.xcom("example_upkeep", run_id, "health"))) == []


def _run(site: Site, name: str, form: Mapping[str, object]) -> str:
    site.airflow.unpause(name)
    run_id = site.airflow.trigger(name, form)
    assert site.airflow.wait_run(name, run_id, seconds=600) == "success"
    return run_id


def _results(site: Site, name: str, task: str, number: int = 1) -> list[object]:
    """Wait until so many runs of a DAG that an asset starts have ended well; return what their task gave."""
    over = monotonic() + 240
    while True:
        runs = site.airflow.api("GET", f"/dags/{name}/dagRuns")["dag_runs"]
        done = [run["dag_run_id"] for run in runs if run["state"] == "success"]
        if len(done) >= number:
            return [site.airflow.xcom(name, run_id, task) for run_id in done]
        assert monotonic() < over, f"{name} has {len(done)} of {number} runs: {runs}"
        sleep(0.5)
