"""Files in, rows out: each row once, and what cannot be read is a dead letter with its raw bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

from spark_jobs.contracts.errors import ConfigError, DataError, SourceUnreachableError

SCHEMA = "id INT, price DECIMAL(10,2), at TIMESTAMP"


def _letters(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        "SELECT error_class, convert_from(raw_value, 'UTF8'), source->>'file', stage, status FROM etl.dead_letter "
        "ORDER BY convert_from(raw_value, 'UTF8')"
    )


def test_json_that_does_not_fit_is_a_dead_letter_with_its_raw_bytes(pipelines: Pipelines, inbox: Path) -> None:
    bad = [
        '{"id": "x"}',
        '{"id": 1.5}',
        '{"id": 3000000000}',
        '{"id": 1} {"id": 2}',
        '{"id": 1} and more',
        '{"id": 1}] [{"id": 2}',
        '{"id": 1}} {"value": {"id": 2}',
        '{"id": 1},{"id": 2}',
        '[{"id": 1}]',
        "not json",
        '{"id": 1, "at": "yesterday"}',
    ]
    good = [
        '{"id": 1, "price": 1.5, "at": "2026-01-01T00:00:00Z", "more": {"nested": [1]}}',
        '{"id": 2}',
        "{}",
        '{"id": 3} \t',
        '{"id": 4, "note": "Müller", "ratio": NaN}',
        '{"id": 5, "ratio": NaN, "more": {"nested": "}"}}',
    ]
    write_lines(inbox / "0.json", *bad, "", *good)
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema=SCHEMA)
    ended = pipelines.finish(config)
    assert {letter[1] for letter in _letters(pipelines)} == set(bad)
    assert {letter[0] for letter in _letters(pipelines)} == {"MALFORMED_JSON", "TRAILING_CONTENT"}
    assert all(
        str(letter[2]).endswith("0.json") and letter[3:] == ("parse", "pending") for letter in _letters(pipelines)
    )
    assert ended.result.rows["source"] == 17
    assert ended.result.rows["dead_lettered"] == 11
    assert pipelines.one("SELECT count(*) FROM result") == 6


def test_the_readers_options_count_for_the_whole_of_a_nested_value(pipelines: Pipelines, inbox: Path) -> None:
    good = ['{"id": 1, more: {"nested": 1}}', '{"id": 2, /* so */ "more": {"nested": 2}}']
    bad = ['{"id": 3, more: {"nested": 3}} {"id": 4}', '{"id": 5, more: {}}, "id": 6, "more": {}']
    write_lines(inbox / "0.json", *good, *bad)
    options = {"allowUnquotedFieldNames": "true", "allowComments": "true"}
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", options=options)
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(1,), (2,)]
    assert {letter[1] for letter in _letters(pipelines)} == set(bad)


def test_invalid_utf8_and_nul_are_kept_as_they_came(pipelines: Pipelines, inbox: Path) -> None:
    (inbox / "0.json").write_bytes(b'{"id": 1, "name": "\xff"}\n{"id": "\\u0000"}\n')
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT, name STRING")
    pipelines.finish(config)
    raw = pipelines.rows("SELECT raw_value FROM etl.dead_letter ORDER BY 1")
    assert [bytes(row[0]) for row in raw] == [b'{"id": "\\u0000"}', b'{"id": 1, "name": "\xff"}']


def test_csv_knows_quotes_and_line_breaks_and_keeps_misfits(pipelines: Pipelines, inbox: Path) -> None:
    (inbox / "a b%.csv").write_text(
        'id,name,price\n1,"two\nlines, ""quoted""",1.5\n2,plain,2\nx,wrong type,3\n4,short\n5,long,5,more\n'
    )
    config = file_pipeline(
        "rows",
        inbox,
        pipelines.checkpoints,
        schema="id INT, name STRING, price DECIMAL(10,2)",
        format="csv",
        options={"header": "true"},
        transforms=[select(id="id", name="name", file="_file")],
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, name FROM result ORDER BY id") == [(1, 'two\nlines, "quoted"'), (2, "plain")]
    assert [letter[:2] for letter in _letters(pipelines)] == [
        ("MALFORMED_CSV", "4,short"),
        ("MALFORMED_CSV", "5,long,5,more"),
        ("MALFORMED_CSV", "x,wrong type,3"),
    ]
    assert all("a%20b%25.csv" in str(letter[2]) for letter in _letters(pipelines))


def test_a_csv_header_that_is_not_the_schemas_ends_the_run(pipelines: Pipelines, inbox: Path) -> None:
    (inbox / "0.csv").write_text("id,title\n1,a\n")
    config = file_pipeline(
        "rows", inbox, pipelines.checkpoints, schema="id INT, name STRING", format="csv", options={"header": "true"}
    )
    ended = pipelines.run(config)
    assert isinstance(ended.error, DataError)
    assert "0.csv" in str(ended.error)
    assert "title" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 0


@pytest.mark.parametrize("mode", ["FAILFAST", "DROPMALFORMED"])
def test_csv_modes_that_lose_rows_are_refused(pipelines: Pipelines, inbox: Path, mode: str) -> None:
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", format="csv", options={"mode": mode})
    ended = pipelines.run(config)
    assert isinstance(ended.error, ConfigError)
    assert mode in str(ended.error)


def test_parquet_rows_are_numbered(pipelines: Pipelines, inbox: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([7, 8, 9], pa.int32())}), inbox / "0.parquet")
    config = file_pipeline(
        "rows",
        inbox,
        pipelines.checkpoints,
        schema="id INT",
        format="parquet",
        transforms=[select(id="id", number="_row")],
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, number FROM result ORDER BY id") == [(7, 0), (8, 1), (9, 2)]


def test_a_path_that_does_not_exist_is_said_before_anything_is_made(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("rows", inbox / "nowhere", pipelines.checkpoints, schema="id INT")
    ended = pipelines.run(config)
    assert isinstance(ended.error, SourceUnreachableError)
    assert "nowhere" in str(ended.error)
    assert pipelines.one("SELECT to_regclass('public.result') IS NULL")
    assert not (pipelines.checkpoints / "rows").exists()


def test_the_ledger_keeps_path_time_and_size_of_each_file(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1})
    pipelines.finish(file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT"))
    path, size, age = pipelines.rows(
        "SELECT path, size_bytes, abs(extract(epoch FROM now() - modified_at))::int FROM etl.batch_file"
    )[0]
    assert path.endswith("/0.json")
    assert size == len(json.dumps({"id": 1})) + 1
    assert age < 600


def test_old_files_that_arrive_late_are_read(pipelines: Pipelines, inbox: Path) -> None:
    import os

    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT")
    write_lines(inbox / "new.json", {"id": 1})
    pipelines.finish(config)
    write_lines(inbox / "old.json", {"id": 2})
    os.utime(inbox / "old.json", (1_000_000_000, 1_000_000_000))
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(1,), (2,)]


def test_rate_rows_are_numbered_without_hole(pipelines: Pipelines, tmp_path: Path) -> None:
    config = file_pipeline("rate", tmp_path, pipelines.checkpoints, schema="id INT")
    config["extract"] = {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "500"}}
    del config["schemas"]
    pipelines.finish(config)
    pipelines.finish(config)
    assert pipelines.rows("SELECT count(*), count(DISTINCT value), min(value), max(value) FROM result") == [
        (1000, 1000, 0, 999)
    ]


def test_a_file_from_the_far_future_hides_no_other(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "future.json", {"id": 1})
    os.utime(inbox / "future.json", (9_000_000_000, 9_000_000_000))
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT")
    pipelines.finish(config)
    write_lines(inbox / "today.json", {"id": 2})
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(1,), (2,)]


@pytest.mark.parametrize("option", ["ignoreCorruptFiles", "ignoremissingfiles"])
def test_options_that_leave_rows_out_are_refused(pipelines: Pipelines, inbox: Path, option: str) -> None:
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", options={option: "true"})
    with pytest.raises(ConfigError, match="without a word"):
        pipelines.run(config)
