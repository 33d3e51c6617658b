"""The progress of micro-batches in the tracker: what Spark told, what failed, and that writing it harms nobody."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import BeforeBatch, Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import TargetMismatchError
from spark_jobs.contracts.tracker import progress
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.progress import BatchProgress, newest_progress, recent_progress
from spark_jobs.contracts.tracker.run_state import RunPhase, newest_run_life
from spark_jobs.runtime import query_runner
from spark_jobs.runtime.stopping import Stop

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
WATERMARK = {"eventTimeColumn": "at", "delayThreshold": "1 minute"}


def _windows(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    return file_pipeline(
        "windows",
        inbox,
        pipelines.checkpoints,
        schema="shop STRING, at TIMESTAMP",
        transforms=[
            aggregation(groupByColumns="shop", windowColumn="at", windowDuration="10 minutes", aggregations="n:count")
        ],
        streaming={"outputMode": "append", "watermark": WATERMARK, "maxFilesPerTrigger": 1},
    )


def _rows(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    streaming = {"maxFilesPerTrigger": 1}
    return file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", load=load, streaming=streaming)


def _kept(pipelines: Pipelines, pipeline_id: str = "rows", limit: int = 100) -> list[BatchProgress]:
    """Return what is kept, the oldest first."""
    database = DatabaseConnection.from_airflow("warehouse", pipelines.database.airflow_uri)
    with connect(database, application_name="test") as conn:
        found = recent_progress(conn, "etl", pipeline_id, limit)
        assert newest_progress(conn, "etl", pipeline_id) == (found[0] if found else None)
    return found[::-1]


def _numbers(inbox: Path, *numbers: int) -> None:
    for number in numbers:
        write_lines(inbox / f"{number}.json", {"id": number})


def test_an_aggregation_with_a_watermark_and_state(pipelines: Pipelines, inbox: Path) -> None:
    for number in range(3):
        rows = [{"shop": shop, "at": f"2026-01-01T00:{10 * number:02d}:00Z"} for shop in "ab"]
        write_lines(inbox / f"{number}.json", *rows)
        # Spark reads files in the order of their times.
        os.utime(inbox / f"{number}.json", (number, number))
    config = _windows(pipelines, inbox)
    run_id = pipelines.finish(config).result.run_id
    kept = _kept(pipelines, "windows")
    # Three with data, and the one in which Spark moves the watermark on.
    ledger = pipelines.rows("SELECT query_id, batch_id, run_id, epoch FROM etl.batch_tracker ORDER BY batch_id")
    assert [(item.query_id, item.batch_id, item.run_id, item.epoch) for item in kept] == ledger
    assert [item.input_rows for item in kept] == [2, 2, 2, 0]
    assert [item.watermark for item in kept] == [None, *(MIDNIGHT + timedelta(minutes=at) for at in (-1, 9, 19))]
    assert [item.state_rows for item in kept] == [2, 4, 6, 4]
    assert kept[-1].state_bytes is not None
    assert kept[-1].state_bytes > 0
    for number, item in enumerate(kept):
        assert (item.outcome, item.phase, item.error, item.attempt) == ("completed", None, None, 1)
        assert item.durations is not None
        assert item.durations["addBatch"] <= item.durations["triggerExecution"] <= (item.duration_ms or 0)
        assert item.sources is not None
        assert item.state_operators is not None
        if number < 3:
            assert item.sources[0]["endOffset"] == {"logOffset": number}
    assert kept[1].event_time is not None
    assert kept[1].event_time["max"] == "2026-01-01T00:10:00.000Z"
    assert len({item.spark_run_id for item in kept}) == 1
    # Nothing new: Spark tells of it, but there was no micro-batch.
    pipelines.finish(config)
    assert len(_kept(pipelines, "windows")) == 4
    trigger, application = pipelines.rows(
        "SELECT trigger, application_id FROM etl.pipeline_run WHERE run_id = %s", run_id
    )[0]
    assert (trigger, application) == ("availablenow", pipelines.spark.sparkContext.applicationId)  # type: ignore[union-attr]


def test_a_batch_that_fails_and_is_done_again(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    _numbers(inbox, 1)
    # A trigger that refuses every row with a secret in its words, longer than anybody wants to read.
    pipelines.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'password=hunter22 %', repeat('x', 9000) USING ERRCODE = 'XX000'; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION no()",
    )
    ended = pipelines.run(config)
    assert ended.error is not None
    pipelines.execute("DROP TRIGGER no ON result")
    pipelines.finish(config)
    first, failed, again = _kept(pipelines)
    assert [(item.batch_id, item.outcome) for item in (first, failed, again)] == [
        (0, "completed"),
        (1, "failed"),
        (1, "completed"),
    ]
    assert (failed.phase, failed.attempt, failed.epoch) == ("writing", 1, 2)
    assert failed.sources == [{"startOffset": {"logOffset": 0}, "endOffset": {"logOffset": 1}}]
    assert failed.duration_ms is not None
    assert failed.error is not None
    assert failed.error["type"] == type(ended.error).__name__
    assert "hunter22" not in str(failed.error)
    assert len(failed.error["found"]) <= 2000
    assert len({item.spark_run_id for item in (first, failed, again)}) == 3


def test_attempts_of_one_run_are_counted(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0, 1)
    retry = {"maxAttempts": 3, "initialDelayMs": 1, "maxDelayMs": 1}
    config = _rows(pipelines, inbox) | {"errorHandling": {"retryConfig": retry}}
    pipelines.finish(config)
    _numbers(inbox, 2)
    pipelines.execute(
        "CREATE SEQUENCE tries",
        "CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'busy' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER busy BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION busy()",
    )
    pipelines.finish(config)
    told = [(item.batch_id, item.outcome, item.attempt) for item in _kept(pipelines)]
    assert told == [
        (0, "completed", 1),
        (1, "completed", 1),
        (2, "failed", 1),
        (2, "failed", 2),
        (2, "completed", 3),
    ]


def test_spark_fails_before_a_batch_comes_to_our_code(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    _numbers(inbox, 1)
    # Spark cannot write the next batch's offsets.
    offsets = pipelines.checkpoints / "rows" / "offsets"
    (offsets / "1").mkdir()
    (offsets / "1" / "in the way").touch()
    ended = pipelines.run(config)
    assert ended.error is not None
    failed = _kept(pipelines)[-1]
    assert (failed.batch_id, failed.outcome, failed.phase) == (1, "failed", "planning")
    assert failed.error is not None


def test_progress_that_cannot_be_written_fails_nobody(
    pipelines: Pipelines, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    _numbers(inbox, 1, 2, 3)
    gone = BeforeBatch(2, pipelines, "ALTER TABLE etl.query_progress RENAME TO elsewhere")
    with caplog.at_level(logging.WARNING, "etl.progress"):
        ended = pipelines.run(config, stop=gone)
    assert ended.error is None
    assert pipelines.rows("SELECT count(*), count(DISTINCT batch_id) FROM etl.batch_tracker") == [(4, 4)]
    said = [record.getMessage() for record in caplog.records if record.name == "etl.progress"]
    assert said
    assert all(line.startswith("event=progress_not_written") and "query_progress" in line for line in said)
    pipelines.execute("ALTER TABLE etl.elsewhere RENAME TO query_progress")
    _numbers(inbox, 4)
    pipelines.finish(config)
    assert [item.batch_id for item in _kept(pipelines)][-1] == 4


def test_a_locked_table_holds_no_commit_up(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    _numbers(inbox, 1, 2, 3)
    with pipelines.database.connect() as conn:
        conn.execute("LOCK TABLE etl.query_progress IN ACCESS EXCLUSIVE MODE")
        ended = pipelines.run(config)
        assert ended.error is None
        assert ended.result is not None
        assert ended.result.batches == 3
    assert [item.batch_id for item in _kept(pipelines)] == [0]


def test_no_more_than_the_newest_are_kept(pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "KEPT_ROWS", 3)
    monkeypatch.setattr(progress, "_TRIM_STEP", 2)
    _numbers(inbox, *range(8))
    pipelines.finish(_rows(pipelines, inbox))
    assert [item.batch_id for item in _kept(pipelines)] == [5, 6, 7]


def test_nothing_is_lost_when_many_batches_end_between_two_looks(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pipelines.spark is not None
    monkeypatch.setattr(query_runner, "_POLL_SECONDS", 300)
    pipelines.spark.conf.set("spark.sql.streaming.numRecentProgressUpdates", "1")
    _numbers(inbox, *range(6))
    try:
        pipelines.finish(_rows(pipelines, inbox))
    finally:
        pipelines.spark.conf.unset("spark.sql.streaming.numRecentProgressUpdates")
    assert [item.batch_id for item in _kept(pipelines)] == list(range(6))


def test_who_may_not_delete_keeps_old_progress_and_is_warned(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    monkeypatch.setattr(progress, "KEPT_ROWS", 1)
    pipelines.execute(
        "CREATE FUNCTION etl.stay() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'permission denied for table query_progress' USING ERRCODE = '42501'; END $$",
        "CREATE TRIGGER stay BEFORE DELETE ON etl.query_progress FOR EACH ROW EXECUTE FUNCTION etl.stay()",
    )
    _numbers(inbox, 1)
    with caplog.at_level(logging.WARNING, "etl.progress"):
        pipelines.finish(config)
    assert [item.batch_id for item in _kept(pipelines)] == [0, 1]
    assert sum("permission denied" in record.getMessage() for record in caplog.records) == 1


def test_a_batch_of_a_stopped_run_is_no_failure(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    _numbers(inbox, 1)
    stop = Stop()
    stop.ask()
    assert pipelines.run(config, stop=stop).error is not None
    assert [(item.batch_id, item.outcome) for item in _kept(pipelines)] == [(0, "completed")]


def test_what_ends_a_run_before_its_query_is_no_batch(pipelines: Pipelines, inbox: Path) -> None:
    _numbers(inbox, 0)
    config = _rows(pipelines, inbox)
    pipelines.finish(config)
    pipelines.execute("ALTER TABLE result ALTER COLUMN id TYPE date USING NULL")
    assert isinstance(pipelines.run(config).error, TargetMismatchError)
    assert len(_kept(pipelines)) == 1
    database = DatabaseConnection.from_airflow("warehouse", pipelines.database.airflow_uri)
    with connect(database, application_name="test") as conn:
        life = newest_run_life(conn, "etl", "rows")
    assert (life.phase, life.silent_seconds) == (RunPhase.FAILED, None)
