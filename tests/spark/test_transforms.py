"""select and filter; the target's table and types."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, filter_by, select, write_lines

from spark_jobs.contracts.errors import ConfigError, RowsSuppressedError, TargetMismatchError


def _pipeline(
    pipelines: Pipelines, inbox: Path, *transforms: dict[str, Any], schema: str = "id INT, text STRING", **load: Any
) -> dict[str, Any]:
    return file_pipeline("rows", inbox, pipelines.checkpoints, schema=schema, transforms=list(transforms), load=load)


def test_filtered_rows_are_counted_and_later_transforms_see_only_what_passed(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", *({"id": i, "text": str(i) if i % 2 else "odd one"} for i in range(10)), "broken")
    config = _pipeline(
        pipelines,
        inbox,
        filter_by("text <> 'odd one'"),
        select(number="CAST(text AS INT)", half="id / 2"),
        filter_by("number > 3"),
    )
    ended = pipelines.finish(config)
    assert pipelines.rows("SELECT number FROM result ORDER BY 1") == [(5,), (7,), (9,)]
    rows = ended.result.rows
    assert [rows[name] for name in ("source", "passed", "filtered", "dead_lettered", "written")] == [11, 3, 7, 1, 3]


def test_a_null_condition_filters(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1}, {"id": None})
    ended = pipelines.finish(_pipeline(pipelines, inbox, filter_by("id > 0")))
    assert ended.result.rows["filtered"] == 1


def test_an_unknown_column_is_said_before_data_moves(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(_pipeline(pipelines, inbox, select(id="idd")))
    assert isinstance(ended.error, ConfigError)
    assert "transforms[0]" in str(ended.error)
    assert "idd" in str(ended.error)


def test_a_new_table_has_the_querys_types_and_values_arrive_unchanged(pipelines: Pipelines, inbox: Path) -> None:
    columns = {
        "b": "true", "i8": "CAST(1 AS TINYINT)", "i16": "CAST(2 AS SMALLINT)", "i32": "3", "i64": "CAST(4 AS BIGINT)",
        "f32": "CAST(1.5 AS FLOAT)", "f64": "CAST('NaN' AS DOUBLE)",
        "d": "CAST(-12345678901234567890.123456 AS DECIMAL(38,6))",
        "s": "'é 🙂'", "empty": "''", "nothing": "CAST(NULL AS STRING)", "bin": "X'00FF'", "day": "DATE'0001-01-01'",
        "ts": "TIMESTAMP'2026-01-01 00:00:00.123456Z'", "ntz": "TIMESTAMP_NTZ'9999-12-31 23:59:59'",
        "list": "array(1, 2)", "obj": "named_struct('a', 1, 'b', 'x')", "odd \"name\"": "1",
    }  # fmt: skip
    write_lines(inbox / "0.json", {"id": 1})
    pipelines.finish(_pipeline(pipelines, inbox, select(**columns)))
    assert pipelines.rows("SELECT * FROM result")[0] == (
        True, 1, 2, 3, 4, 1.5, pytest.approx(float("nan"), nan_ok=True), Decimal("-12345678901234567890.123456"),
        "é 🙂", "", None, b"\x00\xff", date(1, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59), [1, 2], {"a": 1, "b": "x"}, 1,
    )  # fmt: skip


def test_an_existing_table_may_be_wider(pipelines: Pipelines, inbox: Path) -> None:
    with pipelines.database.connect() as conn:
        conn.execute("CREATE TABLE result (extra int DEFAULT 5, id bigint NOT NULL, text varchar(20), n numeric(20,3))")
    write_lines(inbox / "0.json", {"id": 1, "text": "a"})
    pipelines.finish(
        _pipeline(pipelines, inbox, select(id="id", text="text", n="CAST(1.5 AS DECIMAL(4,2))"), autoCreateTable=False)
    )
    assert pipelines.rows("SELECT extra, id, text, n FROM result") == [(5, 1, "a", Decimal("1.500"))]


@pytest.mark.parametrize(
    ("ddl", "words"),
    [
        (None, ["does not exist", "autoCreateTable"]),
        ("CREATE TABLE result (id smallint, txt text)", ["column id is smallint", "column text (text) is missing"]),
        ("CREATE TABLE result (id int, text text, must int NOT NULL)", ["column must is NOT NULL"]),
    ],
)
def test_a_table_that_does_not_fit_is_said_column_by_column(
    pipelines: Pipelines, inbox: Path, ddl: str | None, words: list[str]
) -> None:
    if ddl:
        with pipelines.database.connect() as conn:
            conn.execute(ddl)
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(_pipeline(pipelines, inbox, autoCreateTable=False))
    assert isinstance(ended.error, TargetMismatchError)
    assert all(word in str(ended.error) for word in words), str(ended.error)


@pytest.mark.parametrize(
    ("ddl", "word"),
    [
        ("CREATE TABLE result (id int, text text)", "no unique key over exactly (id)"),
        ("CREATE TABLE result (id int UNIQUE, text text)", "may be NULL"),
        ("CREATE TABLE result (id int, text text); CREATE UNIQUE INDEX ON result (id) WHERE id > 0", "no unique key"),
    ],
)
def test_upsert_needs_a_key_that_the_server_guards(pipelines: Pipelines, inbox: Path, ddl: str, word: str) -> None:
    with pipelines.database.connect() as conn:
        conn.execute(ddl)
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(_pipeline(pipelines, inbox, writeMode="upsert", keys="id"))
    assert isinstance(ended.error, TargetMismatchError)
    assert word in str(ended.error)


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_trigger_that_suppresses_rows_is_found_out(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    with pipelines.database.connect() as conn:
        conn.execute(
            "CREATE TABLE result (id int, text text); CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF new.id > 1 THEN RETURN NULL; END IF; RETURN new; END $$; "
            "CREATE TRIGGER low BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION low()"
        )
    config = _pipeline(pipelines, inbox, writeStrategy=strategy)
    write_lines(inbox / "0.json", {"id": 0}, {"id": 1})
    pipelines.finish(config)
    write_lines(inbox / "1.json", {"id": 1}, {"id": 2})
    ended = pipelines.run(config)
    assert isinstance(ended.error, RowsSuppressedError)
    assert "1 of 2 rows" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 2
