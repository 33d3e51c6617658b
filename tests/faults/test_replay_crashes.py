"""A replay that is killed at any step: no letter is lost, and none comes home twice."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from drivers import Garage
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.replays import release
from spark_jobs.contracts.tracker.retire import retire_run

POINTS = (
    "run.after_claim",
    "replay.after_taking",
    "replay.before_batch",
    "single.before_copy",
    "single.in_copy",
    "single.before_ledger",
    "single.before_commit",
    "single.after_commit",
    "replay.after_batch",
    "run.before_end",
)


def replay(**values: object) -> ReplayRequest:
    patch = {"_value": "replace(_value, '{id', '{\"id')"}
    return ReplayRequest.of(
        replay_id=uuid4(),
        letters=LetterFilter.of(pipeline_id="orders"),
        patch=patch,
        batch_size=5,
        max_attempts=3,
        **values,
    )


def give_up(pipelines: Pipelines) -> int:
    """Do what an operator does before its next try: the lost driver may not commit, its letters wait again."""
    database = DatabaseConnection.from_airflow("warehouse", pipelines.database.airflow_uri)
    running = "SELECT run_id, split_part(pipeline_id, '/', 3)::uuid FROM etl.pipeline_run WHERE ended_at IS NULL"
    with connect(database, application_name="test") as conn:
        lost = conn.execute(running).fetchall()
        for run_id, _ in lost:
            retire_run(conn, "etl", run_id)
        return release(conn, "etl", [replay_id for _, replay_id in lost])


def test_a_kill_at_any_step_loses_no_letter_and_brings_none_home_twice(
    pipelines: Pipelines, garage: Garage, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id BIGINT", load={"maxDeadLetterFraction": 1}
    )
    # A quotation mark is missing, which the patch puts in; every tenth line lacks its end as well.
    write_lines(inbox / "0.json", *(f'{{id": {number}' + "}" * (number % 10 > 0) for number in range(100)))
    assert garage.driver().run(config).exit_code == 0
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 100

    for point in POINTS:
        garage.driver().killed_at(replay(), point)
        give_up(pipelines)
        home = "SELECT count(*) FROM etl.dead_letter WHERE status = 'replayed'"
        assert pipelines.one(home) == pipelines.one("SELECT count(*) FROM result"), point
    assert garage.driver(another=False).run(replay()).exit_code == 0

    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1") == [
        ("parked", 10),
        ("replayed", 90),
    ]
    assert pipelines.rows("SELECT id, count(*) FROM result GROUP BY id HAVING count(*) <> 1") == []
    assert pipelines.one("SELECT count(*) FROM result WHERE id % 10 > 0") == 90
    # Whoever failed again did so in a micro-batch that the ledger has, and was parked after the third time.
    assert pipelines.rows("SELECT DISTINCT attempt FROM etl.dead_letter WHERE status = 'parked'") == [(3,)]
    failed = "SELECT sum(dead_lettered_rows) FROM etl.batch_tracker WHERE pipeline_id LIKE 'orders/replay/%'"
    assert pipelines.one(failed) == 20
    # Each letter came home in a micro-batch that the ledger has, and each of those has its letters.
    assert (
        pipelines.rows(
            "SELECT b.written_rows, count(d.dead_letter_id) FROM etl.batch_tracker b LEFT JOIN etl.dead_letter d "
            "ON d.home_query_id = b.query_id AND d.home_batch_id = b.batch_id "
            "WHERE b.pipeline_id LIKE 'orders/replay/%' GROUP BY b.query_id, b.batch_id, b.written_rows "
            "HAVING b.written_rows <> count(d.dead_letter_id)"
        )
        == []
    )
