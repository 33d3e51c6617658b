"""The guide's DAG in a real Airflow: a dry run, the micro-batches done again, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

DAG = "reprocess_batches"
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "reprocess.md"


@pytest.fixture
def name(site: Site) -> str:
    """A pipeline that has committed one micro-batch, and has another transform since."""
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    (site.airflow.dags / "reprocess_batches.py").write_text(code)
    document = site.document("shop")["load"]
    name = site.add_pipeline("again", load={**document, "table": "shop.again", "batchColumn": "etl_batch"})
    site.add_lines(name, 1, 2, 3)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    changed = site.document(name)
    changed["load"] |= {"table": "shop.again", "batchColumn": "etl_batch"}
    columns = {"id": "id", "item": "upper(item)"}
    changed["transforms"] = [{"transformType": "select", "parameters": {"columns": columns}}]
    site.write(name, changed)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    site.airflow.wait_dag(DAG)
    site.airflow.unpause(DAG)
    return name


def test_the_guides_dag(site: Site, name: str) -> None:
    rows = "SELECT id, item FROM shop.again ORDER BY id"
    run_id = _trigger(site, name)
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "success", _log(site, run_id)
    told = site.airflow.xcom(DAG, run_id, "reprocess")
    assert (told["dry_run"], told["batches"], told["rows_before"], told["rows_after"]) == (True, 1, 3, 3)
    assert site.rows(rows)[0] == (1, "item 1")

    run_id = _trigger(site, name, dry_run=False)
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "success", _log(site, run_id)
    assert not site.airflow.xcom(DAG, run_id, "reprocess")["dry_run"]
    assert site.rows(rows) == [(1, "ITEM 1"), (2, "ITEM 2"), (3, "ITEM 3")]
    site.statsd.wait("airflow.etl.run.ended", times=2, pipeline_id=name, work="reprocess", exit="finished")

    run_id = _trigger(site, name, batches="7-9", dry_run=False)
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "failed"
    assert "Not all of these micro-batches are in the ledger" in _log(site, run_id)


def _trigger(site: Site, name: str, **params: Any) -> str:
    return site.airflow.trigger(DAG, conf={"pipeline_id": name, **params})


def _log(site: Site, run_id: str) -> str:
    text = site.airflow.task_log(DAG, run_id, "reprocess")
    return text if isinstance(text, str) else json.dumps(text)
