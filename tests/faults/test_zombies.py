"""A driver that was asleep while a newer run did its work: it wakes up, and can commit nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from drivers import Garage
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.exit_codes import ExitCode

SLEEPING = [
    ("single", "append", "batch.after_identity"),
    ("single", "append", "single.before_ledger"),
    # The driver itself writes the result of an aggregation.
    ("single", "overwrite", "single.before_ledger"),
    ("staged", "append", "staged.before_merge"),
    ("staged", "upsert", "staged.before_merge"),
    ("two_phase", "append", "two_phase.after_prepare"),
    ("two_phase", "append", "two_phase.before_decision"),
]


def _config(pipelines: Pipelines, inbox: Path, strategy: str, mode: str = "append", **load: Any) -> dict[str, Any]:
    sums = [aggregation(groupByColumns="id", aggregations="id:count:total")]
    return file_pipeline(
        "zombie",
        inbox,
        pipelines.checkpoints,
        schema="id INT",
        transforms=sums if mode == "overwrite" else [],
        load={"writeStrategy": strategy, "writeMode": mode, **({"keys": "id"} if mode == "upsert" else {}), **load},
        streaming={"outputMode": "complete"} if mode == "overwrite" else {},
    )


def _write(inbox: Path, number: int) -> None:
    for half in range(2):
        first = number * 20 + half * 10
        write_lines(inbox / f"{number}-{half}.json", *[{"id": first + i} for i in range(10)])


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


@pytest.mark.parametrize(("strategy", "mode", "point"), SLEEPING)
def test_a_driver_that_slept_through_a_newer_run_cannot_commit(
    pipelines: Pipelines, garage: Garage, strategy: str, mode: str, point: str
) -> None:
    inbox = pipelines.folder / "in box"
    config = _config(pipelines, inbox, strategy, mode)
    _write(inbox, 0)
    zombie = garage.driver()
    zombie.stopped_at(config, point)
    newer = garage.driver(another=False).run(config)
    assert newer.exit_code == ExitCode.FINISHED, newer.error
    before = pipelines.rows("SELECT batch_id, epoch, written_rows FROM etl.batch_tracker ORDER BY 1")
    zombie.wake()
    answer = zombie.answer()
    assert answer.exit_code == ExitCode.FENCED, answer
    assert "may not commit any more" in answer.error
    assert _ids(pipelines) == list(range(20))
    assert pipelines.rows("SELECT batch_id, epoch, written_rows FROM etl.batch_tracker ORDER BY 1") == before
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []


@pytest.mark.parametrize(
    ("strategy", "point"),
    [
        ("single", "single.before_commit"),
        ("staged", "staged.before_commit"),
        ("two_phase", "two_phase.before_decision_commit"),
    ],
)
def test_a_driver_that_sleeps_in_its_commit_blocks_the_newer_run_no_longer_than_configured(
    pipelines: Pipelines, garage: Garage, strategy: str, point: str
) -> None:
    inbox = pipelines.folder / "in box"
    config = _config(pipelines, inbox, strategy, takeoverTimeout="1 second")
    _write(inbox, 0)
    zombie = garage.driver()
    zombie.stopped_at(config, point)
    held = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND application_name LIKE 'etl:%:1'"
    assert pipelines.one(held) == 1
    driver = garage.driver(another=False)
    driver.ready()
    began = time.monotonic()
    driver.order(config)
    while pipelines.one("SELECT max(epoch) FROM etl.pipeline") < 2:
        # A bound that only a blocked run would reach: takeoverTimeout is 1 second, the server's own limit 300 (the
        # driver's transactions: 30).
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    newer = driver.answer()
    assert newer.exit_code == ExitCode.FINISHED, newer.error
    zombie.wake()
    answer = zombie.answer()
    assert answer.exit_code == ExitCode.FENCED, answer
    assert _ids(pipelines) == list(range(20))
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(20,)]


def test_a_decided_batch_is_finished_by_the_newer_run_while_its_driver_sleeps(
    pipelines: Pipelines, garage: Garage
) -> None:
    inbox = pipelines.folder / "in box"
    config = _config(pipelines, inbox, "two_phase")
    _write(inbox, 0)
    zombie = garage.driver()
    zombie.stopped_at(config, "two_phase.after_decision")
    newer = garage.driver(another=False).run(config)
    assert newer.exit_code == ExitCode.FINISHED, newer.error
    zombie.wake()
    assert zombie.answer().exit_code == ExitCode.FENCED
    assert _ids(pipelines) == list(range(20))
    assert pipelines.rows("SELECT written_rows, duplicate_count FROM etl.batch_tracker") == [(20, 1)]
