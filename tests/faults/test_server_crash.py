"""PostgreSQL crashes within a batch and recovers: unlogged tables are empty then, prepared parts are there."""

from __future__ import annotations

from typing import Any

import pytest
from drivers import Garage
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.exit_codes import ExitCode

PASSING = {ExitCode.FINISHED, ExitCode.DATABASE_UNREACHABLE, ExitCode.TRANSIENT, ExitCode.BOOKS_DO_NOT_BALANCE}
"""How the driver may end: with the batch done again by itself, or with what a next run finishes."""


@pytest.mark.parametrize(
    ("point", "load"),
    [
        ("single.before_commit", {"writeMode": "append"}),
        ("staged.after_part_commit", {"writeMode": "upsert", "keys": "id"}),
        ("staged.before_merge", {"writeMode": "append"}),
        ("two_phase.after_prepare", {"writeMode": "append"}),
    ],
)
def test_a_server_that_crashes_loses_nothing_of_the_batch(
    pipelines: Pipelines, garage: Garage, postgres_server: Any, point: str, load: dict[str, str]
) -> None:
    inbox = pipelines.folder / "in box"
    load = {**load, "writeStrategy": point.partition(".")[0]}
    config = file_pipeline("crashing", inbox, pipelines.checkpoints, schema="id INT", load=load)
    for half in range(2):
        write_lines(inbox / f"{half}.json", *[{"id": half * 10 + i} for i in range(10)])
    driver = garage.driver()
    driver.stopped_at(config, point)
    postgres_server.kill()
    postgres_server.start()
    driver.wake()
    answer = driver.answer()
    assert answer.exit_code in PASSING, answer
    newer = garage.driver(another=False).run(config)
    assert newer.exit_code == ExitCode.FINISHED, newer.error
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in range(20)]
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(20,)]
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []


@pytest.mark.parametrize(
    ("point", "load"),
    [
        ("single.before_commit", {"writeMode": "append"}),
        ("staged.before_merge", {"writeMode": "upsert", "keys": "id"}),
        ("two_phase.after_prepare", {"writeMode": "append"}),
        ("two_phase.after_decision", {"writeMode": "append"}),
        ("two_phase.between_commits", {"writeMode": "append"}),
    ],
)
def test_a_driver_that_retries_goes_on_by_itself(
    pipelines: Pipelines, garage: Garage, postgres_server: Any, point: str, load: dict[str, str]
) -> None:
    """What was decided before the crash is finished before the query starts again."""
    inbox = pipelines.folder / "in box"
    load = {**load, "writeStrategy": point.partition(".")[0]}
    config = file_pipeline("crashing", inbox, pipelines.checkpoints, schema="id INT", load=load)
    config["errorHandlingConfig"] = {"retryConfig": {"initialDelayMs": 10}, "circuitBreakerConfig": {}}
    for half in range(2):
        write_lines(inbox / f"{half}.json", *[{"id": half * 10 + i} for i in range(10)])
    driver = garage.driver()
    driver.stopped_at(config, point)
    postgres_server.kill()
    postgres_server.start()
    driver.wake()
    answer = driver.answer()
    assert answer.exit_code == ExitCode.FINISHED, answer
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in range(20)]
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(20,)]
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    assert pipelines.one("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'stage%'") == 0
