"""What a dead letter holds of its row: the record as it came, or the row, by stage and source."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, filter_by, select, write_lines
from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.rows import CARRIED, RAW, ROW
from spark_jobs.runtime.flow import Flow

LETTERS = (
    "SELECT stage, parsed_row, raw_value, source FROM etl.dead_letter ORDER BY stage, raw_value, parsed_row->>'id'"
)
LOADS: dict[str, dict[str, Any]] = {
    "append": {},
    "upsert": {"writeMode": "upsert", "keys": "id"},
    "deleting": {"writeMode": "upsert", "keys": "id", "deleteMarker": "gone"},
}


def _line(number: int, **more: Any) -> str:
    # Spaces and an unknown key: what is kept is not what was parsed.
    return json.dumps({"id": number, "name": f"n{number}", "text": "1", "unknown": [1], **more}, indent=None) + "  "


# two_phase only appends.
WAYS = [("append", "two_phase"), *((load, strategy) for load in LOADS for strategy in ("single", "staged"))]


@pytest.mark.parametrize(("load", "strategy"), WAYS)
def test_json_lines_come_with_their_bytes(pipelines: Pipelines, inbox: Path, strategy: str, load: str) -> None:
    key = "" if load == "append" else "PRIMARY KEY"
    pipelines.execute(
        "CREATE TABLE shop (name text PRIMARY KEY)", "INSERT INTO shop SELECT 'n' || generate_series(0, 99)",
        f"CREATE TABLE result (id int {key} CHECK (id <> 11), name text REFERENCES shop, number int)",
    )  # fmt: skip
    write = [_line(11), _line(12, name="a\0b"), _line(13, name="nobody"), _line(2**40)]
    transform, parse = [_line(21, text="much\0")], ["broken \u00e9 "]
    lines = [_line(number) for number in range(10)] + write + transform + parse
    (inbox / "0.json").write_text("\n".join(lines), encoding="utf-8")
    columns = {"id": "id", "name": "name", "number": "CAST(text AS INT)"}
    if load == "deleting":
        columns["gone"] = "id = 5"
    config = file_pipeline(
        "raw", inbox, pipelines.checkpoints, schema="id BIGINT, name STRING, text STRING",
        transforms=[select(**{**columns, "id": "IF(id > 100, 2147483647, CAST(id AS INT))"}), filter_by("id <> 7")],
        load={"autoCreateTable": False, "writeStrategy": strategy, **LOADS[load]},
    )  # fmt: skip
    pipelines.execute("ALTER TABLE result ADD CHECK (id < 1000)")
    pipelines.finish(config)
    there = [number for number in range(10) if number != 7 and not (load == "deleting" and number == 5)]
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in there]
    found: dict[str, set[bytes]] = {}
    for stage, row, raw, source in pipelines.rows(LETTERS):
        found.setdefault(stage, set()).add(raw)
        assert source.keys() == {"file", "block_start"}
        assert source["file"].endswith("0.json")
        if stage == "transform":
            assert row == {"id": 21, "name": "n21", "text": "much\ufffd"}
        if stage == "write":
            assert row.keys() == {*columns}
    assert found == {
        "parse": {line.encode() for line in parse},
        "transform": {line.encode() for line in transform},
        "write": {line.encode() for line in write},
    }
    books = (
        "SELECT source_rows, passed_rows, dead_lettered_rows, filtered_rows, written_rows, write_dead_lettered_rows "
    )
    [(source, passed, dead, filtered, written, refused)] = pipelines.rows(f"{books} FROM etl.batch_tracker")
    assert (source, passed, dead, filtered, written, refused) == (len(lines), 13, 2, 1, 9, 4)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_files_come_with_their_row(
    pipelines: Pipelines, inbox: Path, spark: SparkSession, form: str, tmp_path: Path
) -> None:
    huge = Decimal("-12345678901234567890123456789012.123456")
    rows = [
        {"id": 0, "text": "1", "d": huge, "f": 1.0},
        {"id": 1, "text": "x", "d": huge, "f": float("nan")},
        {"id": 2, "text": "y", "d": None, "f": float("-inf")},
        {"id": 3, "text": "3", "d": huge, "f": float("nan")},
    ]
    schema = "id INT, text STRING, d DECIMAL(38,6), f DOUBLE"
    frame = spark.createDataFrame(rows, schema).coalesce(1)
    if form == "csv":
        frame.write.mode("append").option("header", "false").csv(str(inbox))
    else:
        frame.write.mode("append").parquet(str(inbox))
    pipelines.execute("CREATE TABLE result (id int CHECK (id <> 3), number int, d numeric, f float)")
    config = file_pipeline(
        "rows", inbox, pipelines.checkpoints, schema=schema, format=form,
        transforms=[select(id="id", number="CAST(text AS INT)", d="d", f="f")], load={"autoCreateTable": False},
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, d FROM result") == [(0, huge)]
    letters = pipelines.rows(
        "SELECT stage, parsed_row - 'd', parsed_row->>'d', raw_value, raw_key, raw_headers FROM etl.dead_letter "
        "ORDER BY parsed_row->>'id'"
    )
    assert letters == [
        ("transform", {"id": 1, "text": "x", "f": "NaN"}, str(huge), None, None, None),
        ("transform", {"id": 2, "text": "y", "f": "-Infinity"}, None, None, None, None),
        ("write", {"id": 3, "number": 3, "f": "nan"}, str(huge), None, None, None),
    ]
    places = pipelines.rows("SELECT DISTINCT source - 'file' FROM etl.dead_letter ORDER BY 1")
    assert places == ([({"block_start": 0},)] if form == "csv" else [({"row": n},) for n in (1, 2, 3)])


def test_what_jsonb_cannot_hold_of_a_row_without_record_is_kept_exactly(
    pipelines: Pipelines, inbox: Path, spark: SparkSession
) -> None:
    rows = [(0, "1", b"\x00"), (1, "a\0b", b"\xff\x00"), (2, "2\0", b"")]
    spark.createDataFrame(rows, "id INT, text STRING, bytes BINARY").coalesce(1).write.mode("append").parquet(
        str(inbox)
    )
    config = file_pipeline(
        "exact", inbox, pipelines.checkpoints, schema="id INT, text STRING, bytes BINARY", format="parquet",
        transforms=[select(id="id", text="text", half="100 / (id - 1)", bytes="bytes")],
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result") == [(0,)]
    letters = pipelines.rows("SELECT stage, parsed_row->>'text', raw_value FROM etl.dead_letter ORDER BY stage")
    assert [letter[:2] for letter in letters] == [("transform", "a\ufffdb"), ("write", "2\ufffd")]
    exact = [json.loads(raw) for *_, raw in letters]
    assert [(row["text"], base64.b64decode(row["bytes"])) for row in exact] == [("a\0b", b"\xff\x00"), ("2\0", b"")]


def test_a_healthy_batch_carries_nothing_raw(pipelines: Pipelines, inbox: Path, spark: SparkSession) -> None:
    write_lines(inbox / "0.json", {"id": 1, "text": "1"})
    config = file_pipeline(
        "plan", inbox, pipelines.checkpoints, schema="id INT, text STRING",
        transforms=[select(id="id", number="CAST(text AS INT)")],
    )  # fmt: skip
    flow = Flow.build(spark, PipelineConfig.from_json(config), {})
    frame = flow.streaming_frame
    assert not {RAW, ROW} & set(frame.columns)
    state: Any = spark._jsparkSession.sessionState()
    words = str(state.optimizer().execute(frame._jdf.queryExecution().analyzed()).toString()).lower()
    assert "tryeval" not in words
    assert RAW not in words
    assert ROW not in words
    assert set(CARRIED) - {RAW, ROW} > set(frame.columns) - {"id", "number"}
