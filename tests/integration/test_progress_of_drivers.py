"""Progress from a real broker, and a driver of its own that is watched, and then killed."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
from driver_processes import QUICK, java_environ, kill_group, under_watch, wait_until
from kafka_pipelines import kafka_pipeline
from pipeline_runs import Pipelines, file_pipeline, write_lines
from server_age import long_up

from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.progress import recent_progress
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, newest_run_life


def test_what_kafka_tells_of_offsets_and_backlog(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = new_topic()
    kafka.produce(topic, [Record(json.dumps({"id": number}), partition=number % 2) for number in range(25)])
    config = kafka_pipeline(
        "numbers", kafka.bootstrap_servers, topic, pipelines.checkpoints, schema="id BIGINT", options={}
    )
    config["streamingConfigJson"]["maxRecordsPerTrigger"] = 10
    pipelines.finish(config)
    with connect(_database(pipelines), application_name="test") as conn:
        kept = recent_progress(conn, "etl", "numbers", 10)[::-1]
    latest = {topic: {"0": 13, "1": 12}}
    # Spark shares the limit out among the partitions, and rounds.
    read = list(accumulate(item.input_rows or 0 for item in kept))
    assert len(kept) == 3
    assert [item.backlog_rows for item in kept] == [25 - rows for rows in read] == [25 - read[0], 25 - read[1], 0]
    sources = [(item.sources or [{}])[0] for item in kept]
    ends = pipelines.rows("SELECT start_offsets, end_offsets FROM etl.batch_tracker ORDER BY batch_id")
    assert [(source["startOffset"], source["endOffset"]) for source in sources] == [(None, ends[0][1]), *ends[1:]]
    assert [source["latestOffset"] for source in sources] == [latest] * 3
    assert {"minOffsetsBehindLatest", "maxOffsetsBehindLatest", "avgOffsetsBehindLatest"} <= set(sources[0]["metrics"])


def test_a_driver_that_was_killed_falls_silent_and_one_that_lives_does_not(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 0})
    streaming = {"triggerMode": "processingtime=1 seconds"}
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", streaming=streaming)
    shown = ("--conf", "spark.ui.enabled=true", "--conf", "spark.ui.port=0", "--master", "local[2]")
    command = pipelines.command("run", str(pipelines.path(config)), *shown, **java_environ())
    with under_watch(command) as driver:
        # Beside the commits: it is there while the run goes on.
        wait_until(lambda: _count(pipelines) == 1, driver)
        life = _life(pipelines)
        assert life.phase is RunPhase.RUNNING
        assert life.trigger == "processingtime=1 seconds"
        assert (life.application_id or "").startswith("local-")
        assert (life.ui_url or "").startswith("http://")
        _let_time_pass(pipelines)
        assert _life(pipelines).phase is RunPhase.SILENT
        wait_until(lambda: _life(pipelines).phase is RunPhase.RUNNING, driver)
        kill_group(driver)
        driver.wait()
    # Nobody said how it ended, and for a while nobody can know.
    assert _life(pipelines).phase is RunPhase.RUNNING
    _let_time_pass(pipelines)
    life = _life(pipelines)
    assert (life.phase, life.ended_at) == (RunPhase.SILENT, None)
    streaming["triggerMode"] = "availablenow"
    config["streamingConfigJson"] |= streaming
    pipelines.finish(config)
    assert _life(pipelines).phase is RunPhase.FINISHED
    states = pipelines.rows("SELECT state FROM etl.pipeline_run ORDER BY registered_at")
    assert states == [("fenced",), ("finished",)]


def test_a_jvm_that_dies_under_its_driver_is_a_failure_that_is_kept(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 0})
    streaming = {"triggerMode": "processingtime=1 seconds"}
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", streaming=streaming)
    command = pipelines.command("run", str(pipelines.path(config)), *QUICK, **java_environ())
    with under_watch(command) as driver:
        wait_until(lambda: _count(pipelines) == 1, driver)
        [jvm] = [child for child in psutil.Process(driver.pid).children(recursive=True) if child.name() == "java"]
        jvm.kill()
        driver.communicate(timeout=120)
    assert driver.returncode != 0
    assert _life(pipelines).phase is RunPhase.FAILED
    kept = pipelines.rows("SELECT outcome, phase FROM etl.query_progress ORDER BY progress_id")
    assert kept == [("completed", None), ("failed", "planning")]


def _database(pipelines: Pipelines) -> DatabaseConnection:
    return DatabaseConnection.from_airflow("warehouse", pipelines.database.airflow_uri)


def _count(pipelines: Pipelines) -> int:
    if pipelines.one("SELECT to_regclass('etl.query_progress') IS NULL"):
        return 0
    return int(pipelines.one("SELECT count(*) FROM etl.query_progress WHERE outcome = 'completed'"))


def _life(pipelines: Pipelines) -> RunLife:
    with connect(_database(pipelines), application_name="test") as conn:
        return newest_run_life(conn, "etl", "rows")


def _let_time_pass(pipelines: Pipelines) -> None:
    """Three minutes, as the ledger's server sees them: it was up, and heard nothing."""
    with pipelines.database.connect(autocommit=True) as conn:
        long_up(conn)
    pipelines.execute("UPDATE etl.pipeline_run SET heartbeat_at = heartbeat_at - interval '3 minutes'")
