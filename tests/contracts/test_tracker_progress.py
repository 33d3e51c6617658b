"""The table of progress: order, bounds, the same row twice; and ``etl-pipeline progress``."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from spark_jobs.cli.progress import progress as command
from spark_jobs.cli.status import status
from spark_jobs.contracts.errors import ConfigError, DataError, TargetMismatchError
from spark_jobs.contracts.tracker import progress, runs
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.progress import (
    BatchProgress,
    newest_progress,
    recent_progress,
    trim_progress,
    write_progress,
)

app = typer.Typer()
app.command()(command)
app.command()(status)


def _row(batch: int | None = 0, pipeline: str = "orders", **values: Any) -> BatchProgress:
    return BatchProgress(
        **{
            "pipeline_id": pipeline,
            "query_id": "q",
            "batch_id": batch,
            "spark_run_id": "s1",
            "run_id": "r1",
            "epoch": 1,
            "attempt": 1,
            "outcome": "completed",
            **values,
        }
    )


FULL = _row(
    7,
    triggered_at=datetime(2026, 3, 1, tzinfo=UTC),
    duration_ms=1234,
    durations={"addBatch": 1000, "triggerExecution": 1234},
    input_rows=5_000_000_000,
    input_rows_per_second=0.5,
    processed_rows_per_second=81.4,
    watermark=datetime(2026, 2, 28, tzinfo=UTC),
    event_time={"max": "2026-03-01T00:00:00.000Z"},
    sources=[{"endOffset": {"orders": {"0": 12}}, "metrics": {"maxOffsetsBehindLatest": "3"}}],
    backlog_rows=3,
    backlog_bytes=4096,
    state_rows=2,
    state_bytes=512,
    state_operators=[{"operatorName": "stateStoreSave", "numRowsTotal": 2}],
)
FAILED = _row(8, outcome="failed", phase="writing", error={"type": "DataError", "what": "[red]no", "found": "50% off"})


def test_what_is_written_is_read(tracker):
    write_progress(tracker.conn, "etl", [FULL, FAILED])
    failed, full = recent_progress(tracker.conn, "etl", "orders", 10)
    assert full.model_dump(exclude={"progress_id", "recorded_at"}) == FULL.model_dump(
        exclude={"progress_id", "recorded_at"}
    )
    assert failed.error == FAILED.error
    assert newest_progress(tracker.conn, "etl", "orders") == failed
    assert newest_progress(tracker.conn, "etl", "nobody") is None


def test_a_row_that_comes_twice_is_there_once_and_a_batch_done_again_twice(tracker):
    write_progress(tracker.conn, "etl", [FULL])
    write_progress(tracker.conn, "etl", [FULL, FAILED])
    write_progress(tracker.conn, "etl", [_row(7, spark_run_id="s2", run_id="r2", epoch=2)])
    found = recent_progress(tracker.conn, "etl", "orders", 10)
    assert [(item.batch_id, item.run_id) for item in found] == [(7, "r2"), (8, "r1"), (7, "r1")]


def test_only_the_newest_stay_and_only_of_this_pipeline(tracker, monkeypatch):
    monkeypatch.setattr(progress, "KEPT_ROWS", 5)
    monkeypatch.setattr(progress, "_TRIM_STEP", 3)
    write_progress(tracker.conn, "etl", [_row(number) for number in range(16)])
    write_progress(tracker.conn, "etl", [_row(number, "other") for number in range(7)])
    assert trim_progress(tracker.conn, "etl", "orders") == 11
    assert trim_progress(tracker.conn, "etl", "orders") == 0
    assert [item.batch_id for item in recent_progress(tracker.conn, "etl", "orders", 99)] == [15, 14, 13, 12, 11]
    assert len(recent_progress(tracker.conn, "etl", "other", 99)) == 7


def test_a_failure_has_an_error_and_a_phase_and_nothing_else_has(tracker):
    for wrong in (_row(outcome="failed"), _row(error={"what": "?"}), _row(phase="writing")):
        with pytest.raises(DataError):
            write_progress(tracker.conn, "etl", [wrong])


def test_no_commit_waits_for_progress_nor_progress_for_a_commit(tracker):
    epoch = tracker.start("r1")
    with closing(tracker.connect()) as committing, committing.transaction():
        check_fence(committing, "etl", "orders", "r1", epoch, lock=True)
        # Waiting for the fence's lock would end in an error here.
        write_progress(tracker.conn, "etl", [FULL])
    with closing(tracker.connect()) as writing, writing.transaction():
        writing.execute("SELECT * FROM etl.query_progress FOR UPDATE")
        with tracker.conn.transaction():
            tracker.conn.execute("SET LOCAL lock_timeout = '1s'")
            check_fence(tracker.conn, "etl", "orders", "r1", epoch, lock=True)


def test_two_drivers_may_write_and_trim_at_once(tracker, monkeypatch):
    monkeypatch.setattr(progress, "KEPT_ROWS", 10)

    def drive(driver: int) -> None:
        with closing(tracker.connect()) as conn:
            for number in range(30):
                write_progress(conn, "etl", [_row(number, spark_run_id=f"s{driver}")])
                trim_progress(conn, "etl", "orders")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(drive, range(3)))
    assert tracker.one("SELECT count(*) FROM etl.query_progress") == 10


def test_without_the_privilege_the_error_says_so(tracker):
    role = "progress_nobody"
    tracker.conn.execute(f"CREATE ROLE {role}")
    try:
        tracker.conn.execute(f"GRANT USAGE ON SCHEMA etl TO {role}")
        tracker.conn.execute(f"SET ROLE {role}")
        with pytest.raises(TargetMismatchError, match="query_progress"):
            write_progress(tracker.conn, "etl", [FULL])
    finally:
        tracker.conn.execute("RESET ROLE")
        tracker.conn.execute(f"DROP OWNED BY {role}")
        tracker.conn.execute(f"DROP ROLE {role}")


@pytest.fixture
def run(database, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.airflow_uri)
    monkeypatch.setenv("ETL_CONNECTION", "warehouse")
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_the_command_shows_the_newest_last_and_why_a_batch_failed(run, tracker):
    tracker.start("r1")
    runs.heartbeat(tracker.conn, "etl", "r1", "local-1", ui_url="http://driver:4040")
    assert "no progress is kept" in run("progress", "orders").output
    write_progress(tracker.conn, "etl", [_row(6), FULL, FAILED, _row(8, spark_run_id="s2", attempt=2)])
    shown = run("progress", "orders", "--limit", "3").output
    for word in ("run r1 is running", "local-1", "http://driver:4040", "5,000,000,000", "81", "1.23 s", "2026-02-28"):
        assert word in shown
    assert "failed writing" in shown
    assert "completed, attempt 2" in shown
    assert "8: DataError: [red]no 50% off" in shown
    found = json.loads(run("progress", "orders", "--limit", "3", "--json").output)
    assert [item["batch_id"] for item in found["batches"]] == [7, 8, 8]
    assert found["run"]["phase"] == "running"
    assert found["batches"][0]["sources"] == FULL.sources
    assert isinstance(run("progress", "ordres").exception, ConfigError)


def test_a_driver_that_fell_silent_is_shown_as_such(run, long_up):
    long_up.start("r1")
    assert "silent" not in run("status").output
    long_up.conn.execute("UPDATE etl.pipeline_run SET heartbeat_at = clock_timestamp() - interval '3 hours'")
    (shown,) = json.loads(run("status", "orders", "--json").output)
    assert (shown["run_state"], shown["run_phase"]) == ("running", "silent")
    assert "silent 3 h" in run("status").output
    shown = run("progress", "orders").output
    assert "nothing was heard of it for 3 h" in shown
    assert "run it again" in shown
