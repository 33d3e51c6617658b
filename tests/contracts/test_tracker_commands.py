"""``etl-pipeline migrate`` and ``etl-pipeline status``."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from spark_jobs.cli.migrate import migrate
from spark_jobs.cli.status import age, status
from spark_jobs.contracts.errors import ConfigError, ConnectionMissingError, LedgerVersionError
from spark_jobs.contracts.tracker import runs

app = typer.Typer()
app.command()(migrate)
app.command()(status)


@pytest.fixture
def run(database, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.airflow_uri)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("ETL_CONNECTION", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_migrate_says_what_it_did(run):
    first = run("migrate", "--connection", "warehouse")
    assert first.exit_code == 0
    assert first.output.startswith("applied 0001_runs\n")
    assert run("migrate", "--connection", "warehouse").output == "schema etl is up to date\n"


def test_status_as_table_and_as_json(run, tracker, monkeypatch):
    monkeypatch.setenv("ETL_CONNECTION", "warehouse")
    assert "no pipeline was started yet" in run("status").output
    tracker.start("r1", "[red]orders")
    tracker.commit(tracker.record(41, pipeline_id="[red]orders"))
    runs.finish_run(tracker.conn, "etl", "r1", "finished", 0)
    tracker.register("s1", "silent")
    table = run("status").output
    for shown in ("[red]orders", "41", "finished", "balanced", "silent", "registered"):
        assert shown in table
    (orders,) = json.loads(run("status", "[red]orders", "--json").output)
    assert (orders["last_batch_id"], orders["rows"], orders["epoch"], orders["ledger"]) == (41, 7, 1, "balanced")
    assert orders["gaps"] == 1
    assert orders["last_commit_age_seconds"] < 600
    silent = json.loads(run("status", "--json").output)[1]
    assert (silent["run_state"], silent["last_commit_at"]) == ("registered", None)


def test_what_is_missing_is_named(run, tracker):
    assert isinstance(run("status", "nobody", "--connection", "warehouse").exception, ConfigError)
    assert isinstance(run("status", "--connection", "elsewhere").exception, ConnectionMissingError)
    missing = run("status", "--connection", "warehouse", "--schema", "other").exception
    assert isinstance(missing, LedgerVersionError)
    assert "--schema other" in str(missing)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-1.0, "0 s"), (0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (172_800, "2 d")],
)
def test_ages(seconds, text):
    assert age(seconds) == text
