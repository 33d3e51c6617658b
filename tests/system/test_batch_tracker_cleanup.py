"""The cleanup DAG in a real Airflow: a dry run, a run that removes, and a pipeline that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from test_kill_and_secrets import wait_for

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES
from spark_jobs.contracts.tracker.staging_names import staging_prefix

if TYPE_CHECKING:
    from tests.system.conftest import Site

DAG = "etl_batch_tracker_cleanup"
# What a query before did, every day: the same row with other numbers.
_BEFORE = """
INSERT INTO etl.batch_tracker SELECT (jsonb_populate_record(b, jsonb_build_object(
    'query_id', 'before', 'batch_id', n, 'processed_at', now() - interval '40 days'
))).* FROM etl.batch_tracker b, generate_series(1, %s) AS n WHERE pipeline_id = %s"""


@pytest.fixture
def name(site: Site) -> str:
    """A pipeline that has run, and of whose query before there are ten batches more than any cleanup keeps."""
    name = site.add_pipeline("history")
    site.add_lines(name, 1, 2)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    _execute(site, _BEFORE, MINIMUM_BATCHES + 10, name)
    site.airflow.unpause(DAG)
    _wait_scheduled(site)
    return name


@pytest.fixture
def staging(site: Site, name: str) -> Iterator[str]:
    """A staging table that a driver of the pipeline has left."""
    table = f"{staging_prefix(name, 'etl')}1_1_rows"
    _execute(site, f'CREATE TABLE etl."{table}" ()')
    yield table
    _execute(site, f'DROP TABLE IF EXISTS etl."{table}"')


def _wait_scheduled(site: Site) -> None:
    """Wait for the end of the day's own run, which unpausing starts in the day's first hours: it cleans as well."""

    def ended() -> bool:
        next_run = site.airflow.api("GET", f"/dags/{DAG}")["next_dagrun_run_after"]
        if next_run is None or datetime.fromisoformat(next_run) <= datetime.now(UTC):
            return False
        runs = site.airflow.api("GET", f"/dags/{DAG}/dagRuns")["dag_runs"]
        return all(run["state"] in ("success", "failed") for run in runs if run["run_type"] == "scheduled")

    wait_for(ended, "the day's own run", 600)


def _execute(site: Site, statement: str, *values: Any) -> None:
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute(statement.encode(), values or None)


def _state(site: Site, name: str, staging: str) -> tuple[int, int]:
    [(batches,)] = site.rows(
        "SELECT count(*) FROM etl.batch_tracker WHERE pipeline_id = %s AND query_id = 'before'", name
    )
    [(tables,)] = site.rows("SELECT count(*) FROM pg_tables WHERE tablename = %s", staging)
    return batches, tables


def _run(site: Site, name: str, **params: Any) -> tuple[str, str]:
    conf = {"pipelines": [name], "keep_batches": MINIMUM_BATCHES, **params}
    run_id = site.airflow.trigger(DAG, conf=conf)
    return run_id, site.airflow.wait_run(DAG, run_id, seconds=300)


def _log(site: Site, run_id: str, task: str) -> str:
    text = site.airflow.task_log(DAG, run_id, task)
    return text if isinstance(text, str) else json.dumps(text)


def test_a_dry_run_changes_nothing_and_a_run_does_what_it_said(site: Site, name: str, staging: str) -> None:
    run_id, state = _run(site, name, dry_run=True)
    assert state == "success", _log(site, run_id, "retention") + _log(site, run_id, "orphans")
    would_go = site.airflow.xcom(DAG, run_id, "retention")
    assert would_go["by_pipeline"] == {name: {"batches": 10}}
    assert _state(site, name, staging) == (MINIMUM_BATCHES + 10, 1)

    run_id, state = _run(site, name)
    assert state == "success", _log(site, run_id, "retention") + _log(site, run_id, "orphans")
    assert site.airflow.xcom(DAG, run_id, "retention")["by_pipeline"] == would_go["by_pipeline"]
    [orphan] = site.airflow.xcom(DAG, run_id, "orphans")["orphans"]
    assert (orphan["name"], orphan["state"]) == (staging, "dropped")
    assert _state(site, name, staging) == (MINIMUM_BATCHES, 0)
    # The pipeline goes on as if nothing had happened.
    site.add_lines(name, 3)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    assert site.rows(f"SELECT id FROM shop.{name} ORDER BY id") == [(1,), (2,), (3,)]


def test_an_unknown_pipeline_fails_the_run(site: Site, name: str, staging: str) -> None:
    run_id, state = _run(site, name, pipelines=["nobody"])
    assert state == "failed"
    assert "does not know 'nobody'" in _log(site, run_id, "retention")
    assert _state(site, name, staging) == (MINIMUM_BATCHES + 10, 1)
