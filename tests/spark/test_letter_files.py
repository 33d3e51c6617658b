"""Dead letters as Parquet files: what stands in them, where they lie, and that a batch's set is the batch's own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pipeline_runs import BeforeBatch, Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.exit_codes import ExitCode

BAD = '{"id": "no number"}'


def _pipeline(pipelines: Pipelines, inbox: Path, name: str = "orders", **parts: Any) -> dict[str, Any]:
    queue = {"dlqType": "s3", "bucketPath": str(pipelines.folder / "letters"), **parts.pop("dlqConfig", {})}
    config = file_pipeline(
        name,
        inbox,
        pipelines.checkpoints,
        schema=parts.pop("schema", "id INT, amount INT"),
        options={"maxFilesPerTrigger": "1"},
        **parts,
    )
    return {**config, "errorHandlingConfig": {"dlqConfig": queue}}


def _copied(pipelines: Pipelines, columns: str) -> list[tuple[Any, ...]]:
    files = str(pipelines.folder / "letters" / "**" / "*.parquet")
    with duckdb.connect() as duck:
        return duck.execute(
            f"SELECT {columns} FROM read_parquet('{files}', hive_partitioning=true) ORDER BY ALL"
        ).fetchall()


def _folders(pipelines: Pipelines) -> list[str]:
    root = pipelines.folder / "letters"
    return sorted({str(file.parent.relative_to(root)) for file in root.rglob("*.parquet")})


def _ids(pipelines: Pipelines) -> list[str]:
    return [str(key) for (key,) in pipelines.rows("SELECT dead_letter_id FROM etl.dead_letter ORDER BY 1")]


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_each_letter_is_in_the_table_and_in_the_files_under_one_id(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    pipelines.execute("CREATE TABLE result (id int PRIMARY KEY, amount int CHECK (amount < 100))")
    config = _pipeline(pipelines, inbox, load={"writeStrategy": strategy, "maxDeadLetterFraction": 1})
    if strategy == "two_phase":
        pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_pkey")
    rows = [{"id": 1, "amount": 1}, {"id": 2, "amount": 200}, BAD, BAD, "not json"]
    write_lines(inbox / "1.json", *rows)
    pipelines.finish(config)
    own = "dead_letter_id::text, stage, error_class, sqlstate, message, source::text, batch_id, query_id, pipeline_id"
    stored = pipelines.rows(
        f"SELECT {own}, raw_value, first_failed_at AT TIME ZONE 'UTC' FROM etl.dead_letter ORDER BY 1"
    )
    copied = _copied(pipelines, f"{own}, raw_value, first_failed_at")
    # jsonb writes its texts in a form of its own.
    assert [row[:5] + row[6:] for row in copied] == [row[:5] + row[6:] for row in stored]
    assert [json.loads(row[5]) for row in copied] == [json.loads(row[5]) for row in stored]
    assert [row[1] for row in sorted(stored, key=lambda row: row[1])] == ["parse"] * 3 + ["write"]
    assert [row[-2] for row in stored].count(BAD.encode()) == 2
    assert len({row[0] for row in stored}) == 4
    assert pipelines.rows("SELECT id FROM result") == [(1,)]
    [(used, reason)] = pipelines.rows("SELECT strategy, strategy_reason FROM etl.batch_tracker")
    assert used == "staged"
    assert strategy == "staged" or reason.endswith("it has dead letters to publish")


def test_a_healthy_batch_writes_no_files_and_keeps_its_strategy(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(pipelines, inbox, load={"maxDeadLetterFraction": 1})
    for number, row in enumerate([{"id": 1, "amount": 1}, BAD, {"id": 3, "amount": 1}, {"id": 4, "amount": 1}]):
        write_lines(inbox / f"{number}.json", row)
        # Files are read in the order of their times.
        os.utime(inbox / f"{number}.json", (1_700_000_000 + number,) * 2)
    pipelines.finish(config)
    strategies = pipelines.rows("SELECT strategy FROM etl.batch_tracker ORDER BY batch_id")
    # The batch after one with letters is looked at as one that may have some.
    assert [name for (name,) in strategies] == ["single", "staged", "staged", "single"]
    assert [folder.rpartition("/")[2] for folder in _folders(pipelines)] == ["batch=1"]


@pytest.mark.parametrize(
    ("partitions", "pattern"),
    [
        ("date", r"date=\d{4}-\d\d-\d\d/query=[0-9a-f-]{36}/batch=0"),
        ("hour", r"date=\d{4}-\d\d-\d\d/hour=\d\d/query=[0-9a-f-]{36}/batch=0"),
        ("pipeline", r"pipeline=orders/query=[0-9a-f-]{36}/batch=0"),
    ],
)
def test_folders_are_divided_by(pipelines: Pipelines, inbox: Path, partitions: str, pattern: str) -> None:
    config = _pipeline(pipelines, inbox, dlqConfig={"partitionBy": partitions}, load={"maxDeadLetterFraction": 1})
    write_lines(inbox / "1.json", BAD)
    pipelines.finish(config)
    [folder] = _folders(pipelines)
    assert re.fullmatch(pattern, folder)
    assert _copied(pipelines, "stage, batch, query = query_id::varchar") == [("parse", 0, True)]


def test_results_that_the_target_refuses_and_the_rows_before_them(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id int, total bigint CHECK (total < 100))")
    config = _pipeline(
        pipelines,
        inbox,
        transforms=[aggregation(groupByColumns="id", aggregations="amount:sum:total")],
        load={"writeMode": "overwrite", "maxDeadLetterFraction": 1},
        streaming={"outputMode": "complete"},
    )
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, {"id": 2, "amount": 200}, BAD)
    pipelines.finish(config)
    assert _copied(pipelines, "stage, raw_value, parsed_row") == [
        ("parse", BAD.encode(), None),
        ("write", None, '{"id": 2, "total": 200}'),
    ]
    assert [(key,) for key in _ids(pipelines)] == _copied(pipelines, "dead_letter_id")
    assert pipelines.rows("SELECT strategy FROM etl.batch_tracker") == [("single",)]


def test_an_aggregation_that_would_be_written_in_two_phases(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute(
        "CREATE TABLE result (window_start timestamptz, window_end timestamptz, total bigint CHECK (total < 100))"
    )
    config = _pipeline(
        pipelines,
        inbox,
        schema="id INT, at TIMESTAMP",
        transforms=[aggregation(windowDuration="1 hour", aggregations="id:sum:total")],
        load={"writeStrategy": "two_phase", "maxDeadLetterFraction": 1},
        streaming={"outputMode": "append", "watermark": {"eventTimeColumn": "at", "delayThreshold": "1 second"}},
    )
    rows = [{"id": number, "at": f"2026-01-01T{hour}:30:00Z"} for hour, number in (("00", 1), ("01", 200), ("03", 1))]
    write_lines(inbox / "1.json", *rows, BAD)
    pipelines.finish(config)
    assert pipelines.rows("SELECT total FROM result") == [(1,)]
    assert _copied(pipelines, "stage") == [("parse",), ("write",)]
    assert [(key,) for key in _ids(pipelines)] == _copied(pipelines, "dead_letter_id")
    strategies = pipelines.rows("SELECT strategy, strategy_reason FROM etl.batch_tracker")
    assert {used for used, _ in strategies} == {"staged"}
    assert all("dead letters are published" in reason for _, reason in strategies)


def test_many_letters_are_read_by_the_executors(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(pipelines, inbox, load={"maxDeadLetterFraction": 1})
    # Equal lines, in more than one share, and more than pass through the driver.
    write_lines(inbox / "1.json", *[f"bad {number // 2}" for number in range(21_000)], {"id": 1, "amount": 1})
    pipelines.finish(config)
    assert _copied(pipelines, "count(*), count(DISTINCT dead_letter_id), count(DISTINCT raw_value)") == [
        (21_000, 21_000, 10_500)
    ]
    assert [(key,) for key in _ids(pipelines)] == _copied(pipelines, "dead_letter_id")


def test_a_batch_that_was_rolled_back_replaces_its_files_under_the_same_ids(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(pipelines, inbox, load={"maxDeadLetterFraction": 1})
    pipelines.execute("CREATE TABLE result (id int, amount int)")
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, BAD, BAD, "not json")
    failing = BeforeBatch(
        1,
        pipelines,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57014'; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON etl.batch_tracker FOR EACH ROW EXECUTE FUNCTION no()",
    )
    ended = pipelines.run(config, stop=failing)
    assert ended.error is not None
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0
    written = _copied(pipelines, "dead_letter_id, raw_value")
    assert len(written) == 3
    pipelines.execute("DROP TRIGGER no ON etl.batch_tracker")
    pipelines.finish(config)
    assert _copied(pipelines, "dead_letter_id, raw_value") == written
    assert [(key,) for key in _ids(pipelines)] == _copied(pipelines, "dead_letter_id")


@pytest.mark.parametrize("changed", ["date", "pipeline"])
def test_the_files_of_a_batch_that_has_no_letters_any_more_vanish(
    pipelines: Pipelines, inbox: Path, changed: str
) -> None:
    pipelines.execute("CREATE TABLE result (id int, amount int CONSTRAINT small CHECK (amount < 100))")
    config = _pipeline(pipelines, inbox, load={"maxDeadLetterFraction": 1})
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, {"id": 2, "amount": 200})
    failing = BeforeBatch(
        1,
        pipelines,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57014'; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON etl.batch_tracker FOR EACH ROW EXECUTE FUNCTION no()",
    )
    assert pipelines.run(config, stop=failing).error is not None
    assert len(_folders(pipelines)) == 1
    pipelines.execute("DROP TRIGGER no ON etl.batch_tracker", "ALTER TABLE result DROP CONSTRAINT small")
    config["errorHandlingConfig"]["dlqConfig"]["partitionBy"] = changed
    pipelines.finish(config)
    assert _folders(pipelines) == []
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(1,), (2,)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0


def test_a_folder_that_cannot_be_written_to_stops_the_run_before_data_moves(pipelines: Pipelines, inbox: Path) -> None:
    in_the_way = pipelines.folder / "letters"
    in_the_way.write_text("a file")
    write_lines(inbox / "1.json", {"id": 1, "amount": 1})
    ended = pipelines.run(_pipeline(pipelines, inbox))
    assert ended.exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    assert ended.error is not None
    assert ended.error.retryable
    assert "letters" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0


def test_an_unknown_file_system_is_named(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(pipelines, inbox, dlqConfig={"bucketPath": "nowhere://bucket/letters"})
    ended = pipelines.run(config)
    assert ended.exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    assert 'No FileSystem for scheme "nowhere"' in str(ended.error)


def test_a_copy_that_is_switched_off(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(pipelines, inbox, dlqConfig={"enabled": False}, load={"maxDeadLetterFraction": 1})
    write_lines(inbox / "1.json", BAD)
    pipelines.finish(config)
    assert _folders(pipelines) == []
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 1
    assert pipelines.rows("SELECT strategy FROM etl.batch_tracker") == [("single",)]
