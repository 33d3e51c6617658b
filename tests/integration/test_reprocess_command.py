"""``etl-pipeline reprocess``: what people and scripts see, and what it refuses; who watches sees the pipeline only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_runs import VARIABLE, Pipelines, file_pipeline, write_lines

from sandbox.spark_cluster import spark_environ
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.contracts.watch.health import pipelines as watched_pipelines


@pytest.fixture
def orders(pipelines: Pipelines, inbox: Path) -> Pipelines:
    """A pipeline with one micro-batch, which has another row since."""
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id BIGINT", load={"batchColumn": "etl_batch"}
    )
    write_lines(inbox / "1.json", {"id": 1}, {"id": 2})
    pipelines.finish(config)
    return pipelines


def command(pipelines: Pipelines, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spark_jobs.cli", "reprocess", *words, "--connection", "warehouse"],
        env={**os.environ, **spark_environ(), VARIABLE: pipelines.database.airflow_uri, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_shown_and_gone_on_with(orders: Pipelines) -> None:
    dry = command(orders, "orders", "--batches", "0", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "1 micro-batches of orders would be reprocessed (dry run)" in dry.stdout
    assert orders.one("SELECT count(*) FROM etl.batch_reprocessed") == 0

    orders.execute("INSERT INTO result SELECT 3, etl_batch FROM result LIMIT 1")
    refused = command(orders, "orders", "--batches", "0", "--master", "local[1]")
    assert refused.returncode == ExitCode.REPROCESS_REFUSED, refused.stderr
    assert "3 rows of the target name it" in refused.stderr
    (known,) = re.findall(r"^reprocess ([0-9a-f-]{36})$", refused.stderr, re.MULTILINE)
    orders.execute("DELETE FROM result WHERE id = 3")
    done = command(orders, "orders", "--batches", "0", "--id", known, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["reprocess_id"], told["batches"], told["rows_before"], told["rows_after"]) == (known, 1, 2, 2)

    database = DatabaseConnection.from_airflow("warehouse", orders.database.airflow_uri)
    with connect(database, application_name="test") as conn:
        assert [status.pipeline_id for status in pipeline_status(conn, "etl")] == ["orders"]
        assert watched_pipelines(LedgerView(conn, "etl")) == ["orders"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("orders",), "either batches, or since and until, or offsets"),
        (("orders", "--batches", "first"), "These are no micro-batches"),
        (("orders", "--batches", "0", "--id", "7"), "--id is no id"),
        (("shop", "--batches", "0"), "'shop' is not in the ledger"),
    ],
)
def test_what_says_nothing_is_refused(orders: Pipelines, words: tuple[str, ...], said: str) -> None:
    done = command(orders, *words)
    assert done.returncode == ExitCode.CONFIG_INVALID, done.stderr
    assert said in done.stderr
