"""``etl-pipeline cleanup`` and ``etl-pipeline orphans``; a cleanup that is killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from spark_jobs.cli.cleanup import cleanup
from spark_jobs.cli.orphans import orphans
from spark_jobs.contracts.cleanup import MINIMUM_BATCHES
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.tracker.staging_names import staging_prefix

app = typer.Typer()
app.command()(cleanup)
app.command()(orphans)


@pytest.fixture
def run(database: Any, tracker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.airflow_uri)
    monkeypatch.setenv("ETL_CONNECTION", "warehouse")
    monkeypatch.setenv("COLUMNS", "200")
    tracker.start("r1", "[red]orders")
    with tracker.conn.transaction():
        for batch_id in range(MINIMUM_BATCHES + 10):
            record = tracker.record(batch_id, pipeline_id="[red]orders")
            raw(tracker.conn, st.insert_batch(tracker.ident), record.row_json())
        tracker.conn.execute("UPDATE etl.batch_tracker SET processed_at = now() - interval '31 days'")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def batches(tracker: Any) -> int:
    return int(tracker.one("SELECT count(*) FROM etl.batch_tracker"))


def test_cleanup_as_table_and_as_json(run: Any, tracker: Any) -> None:
    assert "nothing removed" in run("cleanup").output
    few = ("cleanup", "--keep-batches", str(MINIMUM_BATCHES))
    dry = run(*few, "--dry-run")
    assert "would go" in dry.output
    assert "[red]orders" in dry.output
    assert batches(tracker) == MINIMUM_BATCHES + 10
    told = json.loads(run(*few, "--json").output)
    assert told["totals"] == {"batches": 10}
    assert told["queries"][0]["kept_from_batch"] == 10
    assert batches(tracker) == MINIMUM_BATCHES


def test_expired_progress_is_an_orphan(run: Any, tracker: Any) -> None:
    tracker.conn.execute(
        "INSERT INTO etl.query_progress (pipeline_id, query_id, batch_id, spark_run_id, run_id, epoch, attempt, "
        "recorded_at, outcome) SELECT '[red]orders', 'q', n, 's', 'r1', 1, 1, now() - interval '91 days', 'completed' "
        "FROM generate_series(1, 137) n"
    )
    assert "no driver has left" in run("orphans", "--keep-progress").output
    assert "no driver has left" in run("orphans", "--progress-days", "92").output
    output = run("orphans").output
    assert "progress" in output
    assert " 37 " in output


def test_what_is_not_valid_or_not_there_is_an_error(run: Any) -> None:
    assert isinstance(run("cleanup", "--keep-batches", "5").exception, ConfigError)
    assert isinstance(run("cleanup", "--pipeline", "nobody").exception, ConfigError)
    assert isinstance(run("orphans", "--older-than", "0").exception, ConfigError)


def test_orphans_as_table_and_as_json(run: Any, tracker: Any) -> None:
    assert "no driver has left anything behind" in run("orphans").output
    name = f"{staging_prefix('[red]orders', 'etl')}1_1_rows"
    tracker.conn.execute(f'CREATE TABLE etl."{name}" ()')
    runs.finish_run(tracker.conn, "etl", "r1", "failed", 1)
    assert name in run("orphans", "--dry-run").output
    (orphan,) = json.loads(run("orphans", "--json").output)["orphans"]
    assert (orphan["name"], orphan["state"]) == (name, "dropped")


def test_a_problem_is_an_error_after_all_else(run: Any, tracker: Any) -> None:
    tracker.conn.execute(
        "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, event, "
        "decided_at) VALUES ('[red]orders', 'q', 500, 1, 'r1', %s, %s::jsonb, '{}', now() - interval '1 day')",
        ('[{"name": "gone", "rows": 1, "books": null}]', tracker.record(500).row_json()),
    )
    failed = run("orphans").exception
    assert isinstance(failed, EtlError)
    assert "--accept-missing" in str(failed)


def test_what_cannot_be_removed_is_an_error_after_all_else(run: Any, tracker: Any) -> None:
    tracker.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one stays'; END $$"
    )
    tracker.conn.execute("CREATE TRIGGER refuse BEFORE DELETE ON etl.batch_tracker EXECUTE FUNCTION refuse()")
    ended = run("cleanup", "--keep-batches", str(MINIMUM_BATCHES), "--json")
    assert isinstance(ended.exception, EtlError)
    assert "[red]orders: Removing old micro-batches failed" in str(ended.exception)
    assert "this one stays" in json.loads(ended.output)["problems"]["[red]orders"]["found"]


def test_a_killed_cleanup_goes_on_where_it_was(run: Any, tracker: Any) -> None:
    command = ["cleanup", "--keep-batches", str(MINIMUM_BATCHES), "--batch-size", "4", "--pause", "600"]
    process = subprocess.Popen([sys.executable, "-m", "spark_jobs.cli", *command], env=dict(os.environ))
    try:
        while batches(tracker) == MINIMUM_BATCHES + 10:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert batches(tracker) == MINIMUM_BATCHES + 6
    told = json.loads(run("cleanup", "--keep-batches", str(MINIMUM_BATCHES), "--json").output)
    assert told["totals"] == {"batches": 6}
    assert tracker.one("SELECT removed_through_batch, removed_batches FROM etl.batch_retention") == (9, 10)
