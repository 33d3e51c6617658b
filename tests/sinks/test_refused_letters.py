"""Whatever a refused row holds, its dead letter is stored, and the bytes come out as they went in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import adbc_driver_postgresql
import pyarrow as pa
import pytest
from adbc_driver_manager import AdbcConnection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.sinks.arrow_values import value_of
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.dead_letter_rows import insert_letters_from_json
from spark_jobs.sinks.refused import Limit, Refusal, RefusedRows, has_odd_document, row_text
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.strict_json import DEEPEST, is_jsonb

SAID = Refusal("22P02", "invalid input syntax for type json", "doc", None)
# What Python reads as JSON and PostgreSQL does not, or only with other limits.
ODD = [
    '{"a": NaN}', "Infinity", "-Infinity", '"\\ud83d"', '{"\\udc00": 1}', "1e400000", "-1E-99999", "9" * 5000,
    "[" * 5000 + "]" * 5000, '"\\u0000"',
    '{"a": "\\ud83d", "a": 1}', '{"a": 1e400000, "a": 1}', "\ufeff1", "1.", "01", "", " ", "{'a': 1}",
    '{"a": 1, "a": 2}',
]  # fmt: skip
TEXTS = (
    some.sampled_from(ODD)
    | some.text()
    | some.recursive(
        some.none() | some.booleans() | some.floats() | some.integers() | some.text(),
        lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
    ).map(json.dumps)
)


@pytest.fixture(scope="module")
def cursor(postgres_server: Any) -> Iterator[Any]:
    postgres_server.create_database("letters")
    with postgres_server.connect("letters", autocommit=True) as conn:
        migrate(conn, "etl")
    with (
        adbc_driver_postgresql.connect(postgres_server.uri("letters")) as letters,
        AdbcConnection(letters) as connection,
    ):
        yield Cursor(connection)
    postgres_server.drop_database("letters")


def _stored(cursor: Any, value: bytes, base: str, event_time: str | None = None) -> tuple[Any, bytes | None, Any]:
    row, bases = {"doc": value}, {"doc": base}
    text, odd = row_text(row, bases), has_odd_document(row, bases)
    return _letter(cursor, text, event_time=event_time, keep_raw=odd)


def _letter(cursor: Any, row: str, **more: Any) -> tuple[Any, bytes | None, Any]:
    spool = LetterSpool()
    try:
        RefusedRows(spool, Limit()).add(SAID, row, more.pop("origin", {}), **more)
        cursor.run("TRUNCATE etl.dead_letter_bundle, etl.dead_letter_bundled")
        for chunk in spool.batches():
            cursor.execute(insert_letters_from_json("etl"), ("p", "q", "0", json.dumps(chunk)))
    finally:
        spool.close()
    [(parsed, raw, event_time)] = cursor.execute(
        "SELECT parsed_row->>'doc', raw_value, (extract(epoch FROM event_time) * 1000000)::bigint FROM etl.dead_letter"
    )
    return parsed, raw, event_time


many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(TEXTS)
def test_any_text_on_its_way_into_jsonb_is_kept(cursor: Any, text: str) -> None:
    value = text.encode(errors="replace")
    parsed, raw, _ = _stored(cursor, b"\x01" + value, "jsonb")
    if is_jsonb(value.decode()):
        assert raw is None
        question = "SELECT jsonb_build_object('doc', $1::text::jsonb)->>'doc'"
        assert cursor.execute(question, (value.decode(),)) == [(parsed,)]
    else:
        assert raw is not None
        assert json.loads(raw)["doc"].encode() == value


@many
@given(some.binary())
@example(b"a\xffb")
@example(b"\x00")
@example(b"[" * 500 + b'"')
def test_any_bytes_in_a_text_are_kept(cursor: Any, value: bytes) -> None:
    parsed, raw, _ = _stored(cursor, value, "text")
    if raw is None:
        assert parsed.encode() == value
    else:
        assert json.loads(raw.decode(errors="surrogateescape"))["doc"].encode(errors="surrogateescape") == value


@many
@given(TEXTS)
def test_what_is_embedded_is_what_postgresql_takes(cursor: Any, text: str) -> None:
    if not is_jsonb(text):
        return
    assert cursor.execute("SELECT ($1::text)::jsonb IS NULL", (text,)) == [(False,)]


@pytest.mark.parametrize("text", [text for text in ODD if text != '{"a": 1, "a": 2}'])
def test_odd_json_is_kept_as_text(text: str) -> None:
    assert not is_jsonb(text)


@pytest.mark.parametrize(
    "text", ['"[[[["', "[" * DEEPEST + "]" * DEEPEST, '"\\ud83d\\ude00"', "1e-999", '{"a": [-0.5]}']
)
def test_common_json_is_embedded(text: str) -> None:
    assert is_jsonb(text)


@pytest.mark.parametrize("row", ['{"doc": NaN}', '{"doc": "\\ud83d"}', '{"doc": 1e400000}', "no JSON"])
def test_of_a_row_that_cannot_be_stored_the_bytes_are_kept(cursor: Any, row: str) -> None:
    assert _letter(cursor, row, origin={"source": "NaN"}) == (None, row.encode(), None)


def _event_time(cursor: Any, microseconds: int) -> Any:
    moment = value_of(pa.scalar(microseconds, pa.timestamp("us", "UTC")))
    return _stored(cursor, b"x", "text", str(moment))[2]


DAY = 86_400_000_000
FIRST = -210_863_520_000_000_000
"""4713-01-01 BC; the server reaches back to November of the year before."""

LAST = 9_222_000_000_000_000_000
"""Near the end of Spark's and Arrow's timestamps; beyond it ``extract`` rounds."""


@many
@given(some.integers(-(2**63), LAST) | some.integers(FIRST - DAY, FIRST + DAY))
@example(FIRST)
@example(FIRST - 1)
@example(LAST)
@example(-62_135_596_800_000_001)
@example(253_402_300_800_000_000)
def test_an_event_time_is_kept_where_postgresql_can_hold_it(cursor: Any, microseconds: int) -> None:
    assert _event_time(cursor, microseconds) == (microseconds if microseconds >= FIRST else None)


@pytest.mark.parametrize("text", ["", "-6586-01-01 00:00:00Z", "294277-01-01 00:00:00Z", "0000-01-01 00:00:00", "soon"])
def test_what_is_no_event_time_of_postgresql_is_left_out(cursor: Any, text: str) -> None:
    assert _stored(cursor, b"x", "text", text)[2] is None


@pytest.mark.parametrize(
    ("days", "text"),
    [(0, "1970-01-01"), (2_932_896, "9999-12-31"), (2_932_897, "10000-01-01"), (-719_163, "0001-12-31 BC"),
     (2**31 - 1, "5881580-07-11"), (-(2**31), "5877642-06-23 BC")],
)  # fmt: skip
def test_distant_days_are_written_as_postgresql_writes_them(days: int, text: str) -> None:
    assert str(value_of(pa.scalar(days, pa.int32()).cast(pa.date32()))) == text
