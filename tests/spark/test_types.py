"""Every type there and back: what Spark has is what PostgreSQL holds, also at the ends of each type."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)
_MOMENT = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)

# name -> (Arrow type, Spark type, new column, values, extremes)
COLUMNS: dict[str, tuple[pa.DataType, str, str, Any, list[Any]]] = {
    "flag": (pa.bool_(), "BOOLEAN", "boolean", st.booleans(), [True, False]),
    "tiny": (pa.int8(), "TINYINT", "smallint", st.integers(-128, 127), [-128, 127]),
    "small": (pa.int16(), "SMALLINT", "smallint", st.integers(-(2**15), 2**15 - 1), [-(2**15), 2**15 - 1]),
    "whole": (pa.int32(), "INT", "integer", st.integers(-(2**31), 2**31 - 1), [-(2**31), 2**31 - 1]),
    "big": (pa.int64(), "BIGINT", "bigint", st.integers(-(2**63), 2**63 - 1), [-(2**63), 2**63 - 1]),
    "single": (
        pa.float32(),
        "FLOAT",
        "real",
        st.floats(width=32),
        [math.nan, math.inf, -math.inf, -0.0, 3.4028234663852886e38],
    ),
    "double": (
        pa.float64(),
        "DOUBLE",
        "double precision",
        st.floats(),
        [math.nan, -math.inf, -0.0, 5e-324, 1.7976931348623157e308],
    ),
    "money": (
        pa.decimal128(12, 2),
        "DECIMAL(12,2)",
        "numeric(12,2)",
        st.decimals(Decimal("-9999999999.99"), Decimal("9999999999.99"), places=2),
        [Decimal("-9999999999.99"), Decimal("0.01")],
    ),
    "widest": (
        pa.decimal128(38, 18),
        "DECIMAL(38,18)",
        "numeric(38,18)",
        st.decimals(Decimal(-(10**19)), Decimal(10**19), places=18),
        [Decimal("99999999999999999999.999999999999999999")],
    ),
    "words": (pa.string(), "STRING", "text", _TEXT, ["", "😀 é\n\t\\N", " ", "\ufffd\uffff"]),
    "bytes": (pa.binary(), "BINARY", "bytea", st.binary(max_size=12), [b"", b"\0\xff"]),
    "day": (pa.date32(), "DATE", "date", st.dates(), [date(1, 1, 1), date(9999, 12, 31), date(1582, 10, 10)]),
    "moment": (
        pa.timestamp("us", "UTC"),
        "TIMESTAMP",
        "timestamp with time zone",
        _MOMENT.map(lambda m: m.replace(tzinfo=UTC)),
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1900, 1, 1, tzinfo=UTC),
        ],
    ),
    "local": (
        pa.timestamp("us"),
        "TIMESTAMP_NTZ",
        "timestamp without time zone",
        _MOMENT,
        [datetime(1, 1, 1), datetime(2026, 3, 29, 2, 30)],
    ),
    "numbers": (
        pa.list_(pa.int64()),
        "ARRAY<BIGINT>",
        "jsonb",
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
        [[], [None]],
    ),
    "named": (
        pa.map_(pa.string(), pa.int64()),
        "MAP<STRING,BIGINT>",
        "jsonb",
        st.dictionaries(_TEXT, st.none() | st.integers(-9, 9), max_size=3),
        [{}, {"": None}],
    ),
    "pair": (
        pa.struct([("a", pa.string()), ("b", pa.list_(pa.string()))]),
        "STRUCT<a: STRING, b: ARRAY<STRING>>",
        "jsonb",
        st.fixed_dictionaries({"a": st.none() | _TEXT, "b": st.none() | st.lists(st.none() | _TEXT, max_size=2)}),
        [{"a": "", "b": []}, {"a": None, "b": None}],
    ),
}


def _rows() -> Any:
    return st.lists(st.fixed_dictionaries({name: st.none() | spec[3] for name, spec in COLUMNS.items()}), max_size=20)


def _extremes() -> list[dict[str, Any]]:
    longest = max(len(spec[4]) for spec in COLUMNS.values())
    rows = [
        {name: (spec[4][i] if i < len(spec[4]) else None) for name, spec in COLUMNS.items()} for i in range(longest)
    ]
    return [*rows, dict.fromkeys(COLUMNS)]


def _schema() -> pa.Schema:
    return pa.schema([pa.field("number", pa.int64()), *[pa.field(name, spec[0]) for name, spec in COLUMNS.items()]])


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(found, float) and (
            (math.isnan(found) and math.isnan(expected))
            or (found == expected and math.copysign(1, found) == math.copysign(1, expected))
        )
    return bool(found == expected and (found is None) == (expected is None))


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_every_type_there_and_back(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    ddl = ", ".join(["number BIGINT", *[f"{name} {spec[1]}" for name, spec in COLUMNS.items()]])
    config = file_pipeline(
        "types", inbox, pipelines.checkpoints, schema=ddl, format="parquet", load={"writeStrategy": strategy}
    )
    batch = 0

    def there_and_back(rows: list[dict[str, Any]]) -> None:
        nonlocal batch
        numbered = [{"number": batch * 1000 + n, **row} for n, row in enumerate(rows)]
        arrow = pa.Table.from_pylist(
            [{**row, "named": None if row["named"] is None else list(row["named"].items())} for row in numbered],
            _schema(),
        )
        pq.write_table(arrow, inbox / f"{batch}.parquet")
        pipelines.finish(config)
        # As a real's text PostgreSQL gives the shortest digits that name it.
        columns = ", ".join(f'"{name}"' + ("::float8" if name == "single" else "") for name in COLUMNS)
        found = pipelines.rows(f"SELECT {columns} FROM result WHERE number / 1000 = {batch} ORDER BY number")
        assert len(found) == len(rows)
        for there, row in zip(found, rows, strict=True):
            for value, name in zip(there, COLUMNS, strict=True):
                assert _same(value, row[name]), (name, value, row[name])
        batch += 1

    there_and_back(_extremes())
    types = dict(
        pipelines.rows(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'result'::regclass AND attnum > 0"
        )
    )
    assert {name: types[name] for name in COLUMNS} == {name: spec[2] for name, spec in COLUMNS.items()}

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(_rows())
    def any_rows(rows: list[dict[str, Any]]) -> None:
        there_and_back(rows)

    any_rows()


_MONTHS = 12 * 9999
READ = {
    "document": _JSON.map(json.dumps),
    "id": st.uuids(),
    "host": st.ip_addresses(),
    "micros": st.integers(-(2**62), 2**62),
    "months": st.integers(-_MONTHS, _MONTHS),
}


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_what_the_server_or_spark_reads_from_text_is_there_as_it_was(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    pipelines.execute("CREATE TABLE result (n int, document jsonb, id uuid, host inet, span interval, months interval)")
    config = file_pipeline(
        "read",
        inbox,
        pipelines.checkpoints,
        schema="n INT, document STRING, id STRING, host STRING, micros BIGINT, months INT",
        transforms=[
            select(
                n="n",
                document="parse_json(document)",
                id="id",
                host="host",
                span="timestamp_micros(micros) - timestamp_micros(0)",
                months="make_ym_interval(0, months)",
            )
        ],
        load={"writeStrategy": strategy, "autoCreateTable": False},
    )
    batch = 0

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in READ.items()}), min_size=1))
    def any_rows(rows: list[dict[str, Any]]) -> None:
        nonlocal batch
        lines = ({"n": batch * 1000 + n, **row} for n, row in enumerate(rows))
        write_lines(inbox / f"{batch}.json", *(json.dumps(line, default=str) for line in lines))
        pipelines.finish(config)
        found = pipelines.rows(
            "SELECT document::text, id, host, (extract(epoch FROM span) * 1000000)::bigint, "
            "(extract(year FROM months) * 12 + extract(month FROM months))::int "
            f"FROM result WHERE n / 1000 = {batch} ORDER BY n"
        )
        expected = [tuple(row[name] for name in READ) for row in rows]
        assert [row[1:] for row in found] == [row[1:] for row in expected]
        for (there, *_), (sent, *_) in zip(found, expected, strict=True):
            assert (there is None) == (sent is None)
            assert there is None or json.loads(there) == json.loads(sent)
        batch += 1

    any_rows()


def test_types_that_json_and_parquet_do_not_have(pipelines: Pipelines, inbox: Path) -> None:
    assert pipelines.spark is not None
    # TIME is there in Spark 4.2, and off.
    pipelines.spark.conf.set("spark.sql.timeType.enabled", "true")
    rows = [
        {"n": 0, "micros": 0, "months": 0, "clock": "00:00:00", "document": "null"},
        {
            "n": 1,
            "micros": 86_399_999_999,
            "months": -14,
            "clock": "23:59:59.999999",
            "document": '{"a": [1, "😀", null]}',
        },
        {"n": 2, "micros": 1, "months": 12 * 9999, "clock": "00:00:00.000001", "document": '"text"'},
        {"n": 3},
    ]
    write_lines(inbox / "0.json", *rows)
    config = file_pipeline(
        "others",
        inbox,
        pipelines.checkpoints,
        schema="n INT, micros BIGINT, months INT, clock STRING, document STRING",
        transforms=[
            select(
                n="n",
                span="make_dt_interval(-1, 0, 0, micros / 1000000)",
                months="make_ym_interval(0, months)",
                clock="CAST(clock AS TIME)",
                document="parse_json(document)",
            )
        ],
    )
    pipelines.finish(config)
    found = pipelines.rows(
        "SELECT span, extract(year FROM months) * 12 + extract(month FROM months), clock, document "
        "FROM result ORDER BY n"
    )
    assert found == [
        (timedelta(days=-1), 0, time(0), None),
        (timedelta(microseconds=-1), -14, time(23, 59, 59, 999999), {"a": [1, "😀", None]}),
        (timedelta(days=-1, microseconds=1), 119988, time(0, 0, 0, 1), "text"),
        (None, None, None, None),
    ]
    assert pipelines.one("SELECT document::text FROM result WHERE n = 0") == "null"


def test_what_json_has_no_word_for_is_text_inside_a_document(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"n": 1})
    inside = {
        "nan": "double('NaN')",
        "ends": "array(double('-Infinity'), double('5e-324'), double('1.7976931348623157e308'))",
        "tenth": "float('0.1')",
        "bytes": "X'00FF'",
        "money": "CAST('-12345678901234567890.123456789012345678' AS DECIMAL(38,18))",
        "least": "CAST('0.000000000000000001' AS DECIMAL(38,18))",
        "big": "9223372036854775807L",
        "keys": "map(1, 'a', -2, null)",
        "days": "map(DATE'0001-01-01', 1)",
        "moment": "TIMESTAMP'9999-12-31 23:59:59.999999'",
        "local": "TIMESTAMP_NTZ'2026-03-29 02:30:00.000001'",
        "span": "INTERVAL '-1 00:00:00.000001' DAY TO SECOND",
        "smile": "array('😀', '')",
        "nothing": "named_struct('a', CAST(null AS INT), 'b', array(CAST(null AS STRING)))",
    }
    struct = ", ".join(f"'{name}', {value}" for name, value in inside.items())
    config = file_pipeline(
        "inside",
        inbox,
        pipelines.checkpoints,
        schema="n INT",
        transforms=[select(n="n", document=f"named_struct({struct})")],
    )
    pipelines.finish(config)
    found = {name: pipelines.one("SELECT (document->%s)::text FROM result", name) for name in inside}
    assert json.loads(found.pop("ends"), parse_int=float) == ["-Infinity", 5e-324, 1.7976931348623157e308]
    assert found == {
        "nan": '"NaN"',
        "tenth": "0.1",
        "bytes": '"AP8="',
        "money": "-12345678901234567890.123456789012345678",
        "least": "0.000000000000000001",
        "big": "9223372036854775807",
        "keys": '{"1": "a", "-2": null}',
        # Spark writes a key as the number by which it holds it.
        "days": '{"-719162": 1}',
        "moment": '"9999-12-31T23:59:59.999999Z"',
        "local": '"2026-03-29T02:30:00.000001"',
        "span": "\"INTERVAL '-1 00:00:00.000001' DAY TO SECOND\"",
        "smile": '["😀", ""]',
        "nothing": '{"a": null, "b": [null]}',
    }


def test_text_goes_into_typed_columns_and_what_is_no_such_value_is_a_dead_letter(
    pipelines: Pipelines, inbox: Path
) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN positive AS bigint CHECK (value > 0)")
        conn.execute(
            "CREATE TABLE result (n positive, id uuid, host inet, net cidr, mac macaddr, mood mood, doc jsonb, "
            "plain json, code char(3))"
        )
    identity = uuid4()
    good = {
        "n": 1,
        "id": str(identity),
        "host": "10.0.0.1/8",
        "net": "10.0.0.0/8",
        "mac": "08:00:2b:01:02:03",
        "mood": "bad",
        "doc": '{"a": 1.50}',
        "plain": "[1, 2]",
        "code": "ab",
    }
    bad = {
        "n": -1,
        "id": "x" * 15,
        "host": "nowhere",
        "net": "10.0.0.1/8",
        "mac": "no",
        "mood": "so so",
        "doc": "{",
        "plain": "]",
        "code": "abcd",
    }
    write_lines(
        inbox / "0.json",
        good,
        {**good, "id": "{" + str(identity).upper() + "}", "n": 2},
        dict.fromkeys(good),
        *[{**good, name: value} for name, value in bad.items()],
        {**good, "id": "0123456789abcdef"},
        {**good, "id": ""},
    )
    config = file_pipeline(
        "typed",
        inbox,
        pipelines.checkpoints,
        schema="n BIGINT, " + ", ".join(f"{name} STRING" for name in good if name != "n"),
        load={"autoCreateTable": False},
    )
    pipelines.finish(config)
    row = (identity, "10.0.0.1/8", "10.0.0.0/8", "08:00:2b:01:02:03", "bad", '{"a": 1.50}', "[1, 2]", "ab ")
    found = pipelines.rows(
        "SELECT n, id, host::text, net::text, mac::text, mood::text, doc::text, plain::text, code "
        "FROM result ORDER BY n"
    )
    assert found == [(1, *row), (2, *row), (None,) * 9]
    letters = pipelines.rows("SELECT parsed_row, sqlstate FROM etl.dead_letter")
    assert len(letters) == len(bad) + 2
    assert {state[:2] for _, state in letters} <= {"22", "23"}
    for name, value in bad.items():
        assert any(_text(parsed[name]) == _text(value) for parsed, _ in letters), name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
