"""A run that is asked to stop, a run that was taken over from, and the triggers that do not end by themselves."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import FencedError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.runs import register_run
from spark_jobs.runtime.run import Ended
from spark_jobs.runtime.stopping import Stop


def _pipeline(pipelines: Pipelines, inbox: Path, trigger: str, **streaming: Any) -> dict[str, Any]:
    return file_pipeline(
        "rows", inbox, pipelines.checkpoints, schema="id INT", streaming={"triggerMode": trigger, **streaming}
    )


@contextmanager
def _running(pipelines: Pipelines, config: dict[str, Any], stop: Stop) -> Iterator[list[Ended]]:
    ended: list[Ended] = []
    thread = threading.Thread(target=lambda: ended.append(pipelines.run(config, stop=stop)))
    thread.start()
    try:
        yield ended
    finally:
        stop.ask()
        thread.join(120)
        assert not thread.is_alive()


def _until(condition: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _batches(pipelines: Pipelines) -> int:
    if pipelines.one("SELECT to_regclass('etl.batch_tracker') IS NULL"):
        return 0
    return int(pipelines.one("SELECT count(*) FROM etl.batch_tracker"))


@pytest.mark.parametrize("trigger", ["processingtime=1 seconds", "continuous"])
def test_endless_triggers_read_on_until_they_are_stopped(pipelines: Pipelines, inbox: Path, trigger: str) -> None:
    write_lines(inbox / "0.json", {"id": 0})
    with _running(pipelines, _pipeline(pipelines, inbox, trigger), Stop()) as ended:
        _until(lambda: _batches(pipelines) == 1)
        write_lines(inbox / "1.json", {"id": 1})
        _until(lambda: _batches(pipelines) == 2)
    assert ended[0].exit_code == ExitCode.STOPPED_COMMITTED
    assert pipelines.rows("SELECT state, exit_code FROM etl.pipeline_run") == [("stopped", 30)]
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(0,), (1,)]


def test_once_reads_everything_in_one_batch(pipelines: Pipelines, inbox: Path) -> None:
    for number in range(3):
        write_lines(inbox / f"{number}.json", {"id": number})
    assert pipelines.finish(_pipeline(pipelines, inbox, "once")).result.batches == 1
    assert pipelines.one("SELECT count(*) FROM result") == 3


def test_a_stopped_run_ends_between_batches_and_the_next_goes_on(pipelines: Pipelines, inbox: Path) -> None:
    for number in range(12):
        write_lines(inbox / f"{number}.json", {"id": number})
    config = _pipeline(pipelines, inbox, "availablenow", maxFilesPerTrigger=1)
    stop = Stop()
    with _running(pipelines, config, stop) as ended:
        _until(lambda: _batches(pipelines) >= 1)
    assert ended[0].exit_code == ExitCode.STOPPED_COMMITTED
    assert pipelines.one("SELECT count(*) FROM result") == _batches(pipelines) < 12
    pipelines.finish(config)
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(12, 12)]


def test_a_batch_that_fails_after_somebody_asked_to_stop_is_not_said_to_be_committed(
    pipelines: Pipelines, inbox: Path
) -> None:
    write_lines(inbox / "0.json", {"id": 0})
    config = _pipeline(pipelines, inbox, "availablenow")
    pipelines.finish(config)
    write_lines(inbox / "1.json", {"id": 1})
    stop = Stop()
    waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with pipelines.database.connect() as conn, _running(pipelines, config, stop) as ended:
        conn.execute("LOCK TABLE result IN SHARE MODE")
        _until(lambda: pipelines.one(f"SELECT count(*) {waiting}"))
        stop.ask()
        pipelines.rows(f"SELECT pg_terminate_backend(pid) {waiting}")
        _until(lambda: ended)
    assert ended[0].exit_code == ExitCode.STOPPED_ROLLED_BACK, str(ended[0].error)
    assert pipelines.rows("SELECT id FROM result") == [(0,)]
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(0,), (1,)]


def test_a_newer_run_fences_the_older_one_at_once(pipelines: Pipelines, inbox: Path) -> None:
    for number in range(12):
        write_lines(inbox / f"{number}.json", {"id": number})
    config = _pipeline(pipelines, inbox, "availablenow", maxFilesPerTrigger=1)
    with _running(pipelines, config, Stop()) as ended:
        _until(lambda: _batches(pipelines) >= 1)
        newer = RunRequest(run_id=str(uuid.uuid4()), pipeline_id="rows", config=config, started_by="test")
        database = DatabaseConnection.from_airflow("warehouse", pipelines.database.airflow_uri)
        with connect(database, application_name="test") as conn:
            register_run(conn, "etl", newer)
        committed = _batches(pipelines)
        _until(lambda: ended)
    assert isinstance(ended[0].error, FencedError)
    assert ended[0].exit_code == ExitCode.FENCED
    assert _batches(pipelines) == committed
    pipelines.finish(config)
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(12, 12)]
