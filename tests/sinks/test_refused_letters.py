"""Whatever a refused row holds, its dead letter is stored, and the bytes come out as they went in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.sinks.dead_letter_rows import insert_letters_from_json
from spark_jobs.sinks.refused import Limit, Refusal, RefusedRows, is_jsonb, row_text
from spark_jobs.sinks.sorting import LetterSpool

SAID = Refusal("22P02", "invalid input syntax for type json", "doc", None)
# What Python reads as JSON and PostgreSQL does not, or only with other limits.
ODD = [
    '{"a": NaN}', "Infinity", "-Infinity", '"\\ud83d"', '{"\\udc00": 1}', "1e400000", "-1E-99999", "9" * 5000,
    "[" * 5000 + "]" * 5000, '"\\u0000"', "\ufeff1", "1.", "01", "", " ", "{'a': 1}", '{"a": 1, "a": 2}',
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
    with adbc.connect(postgres_server.uri("letters"), autocommit=True) as conn, conn.cursor() as cursor:
        yield cursor
    postgres_server.drop_database("letters")


def _stored(cursor: Any, value: bytes, base: str, event_time: str | None = None) -> tuple[Any, bytes | None, Any]:
    spool = LetterSpool()
    try:
        RefusedRows(spool, Limit()).add(SAID, row_text({"doc": value}, {"doc": base}), None, event_time)
        cursor.execute("TRUNCATE etl.dead_letter")
        for chunk in spool.batches():
            cursor.execute(insert_letters_from_json("etl"), ("p", "q", "0", json.dumps(chunk)))
    finally:
        spool.close()
    cursor.execute("SELECT parsed_row->>'doc', raw_value, event_time::text FROM etl.dead_letter")
    [row] = cursor.fetchall()
    return row


many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(TEXTS)
def test_any_text_on_its_way_into_jsonb_is_kept(cursor: Any, text: str) -> None:
    parsed, raw, _ = _stored(cursor, b"\x01" + text.encode(errors="replace"), "jsonb")
    assert parsed is not None or text.strip() == "null" or raw is not None


@many
@given(some.binary())
@example(b"a\xffb")
@example(b"\x00")
def test_any_bytes_in_a_text_are_kept(cursor: Any, value: bytes) -> None:
    parsed, raw, _ = _stored(cursor, value, "text")
    if raw is None:
        assert parsed.encode() == value
    else:
        assert json.loads(raw.decode(errors="surrogateescape"))["doc"].encode(errors="surrogateescape") == value


@many
@given(TEXTS)
def test_what_is_embedded_is_what_postgresql_takes(cursor: Any, text: str) -> None:
    if "\\u0000" in text or not is_jsonb(text):
        return
    cursor.execute("SELECT ($1::text)::jsonb IS NULL", (text,))
    assert cursor.fetchall() == [(False,)]


@pytest.mark.parametrize("text", [text for text in ODD if text not in ('"\\u0000"', '{"a": 1, "a": 2}')])
def test_odd_json_is_kept_as_text(text: str) -> None:
    assert not is_jsonb(text)


@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        ("2024-02-29T12:00:00Z", True),
        ("0001-01-01T00:00:00Z", True),
        ("9999-12-31T23:59:59.999999Z", True),
        ("0000-06-01T00:00:00Z", False),
        ("-6586-01-01T00:00:00Z", False),
        ("+300000-01-01T00:00:00Z", False),
        ("", False),
    ],
)
def test_an_event_time_that_postgresql_cannot_hold_is_left_out(cursor: Any, moment: str, kept: bool) -> None:
    assert (_stored(cursor, b"x", "text", moment)[2] is not None) == kept
