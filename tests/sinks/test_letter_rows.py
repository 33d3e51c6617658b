"""Dead letters as the rows of their copies: what came is what stands there, in workers without pandas."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from spark_jobs.sinks.letter_rows import LettersOf, file_rows, topic_rows

OF = LettersOf("orders", "query", 7, datetime(2026, 11, 22, 8, 30, 0, 5, tzinfo=UTC))


def _envelope(**said: Any) -> str:
    given = {"stage": "parse", "error_class": "X", "message": "it said no", "source": "{}", **said}
    return json.dumps({name: value for name, value in given.items() if value is not None})


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_headers_of_a_record_with_and_without_values() -> None:
    raw = json.dumps([{"key": "a", "value": _encoded(b"\x00\xff")}, {"key": "none"}, {"key": "a", "value": ""}])
    [row] = topic_rows([("id-1", _envelope(raw_headers=raw))], OF).to_pylist()
    assert row["headers"][:3] == [
        {"key": "a", "value": b"\x00\xff"},
        {"key": "none", "value": None},
        {"key": "a", "value": b""},
    ]
    own = {header["key"]: header["value"] for header in row["headers"][3:]}
    assert own["__etl.errors.letter.id"] == b"id-1"
    assert own["__etl.errors.first.failed.at"] == b"2026-11-22T08:30:00.000005Z"
    assert "__connect.errors.topic" not in own
    assert None not in own.values()


def test_the_value_is_what_came_else_the_row() -> None:
    letters = [
        ("1", _envelope(raw_value=_encoded(b"\xff"), parsed_row='{"a": 1}', raw_key=_encoded(b"k"))),
        ("2", _envelope(raw_value="", parsed_row='{"a": 1}')),
        ("3", _envelope(parsed_row='{"a": "\u00e9"}')),
        ("4", _envelope()),
    ]
    rows = topic_rows(letters, OF).to_pylist()
    assert [row["value"] for row in rows] == [b"\xff", b"", '{"a": "\u00e9"}'.encode(), None]
    assert [row["key"] for row in rows] == [b"k", None, None, None]


def test_event_times_in_every_form() -> None:
    forms = ["2026-01-02 03:04:05", "2026-01-02 03:04:05.5+02:00", "0044-03-15 12:00:00 BC", "12026-01-01", None]
    letters = [(str(number), _envelope(event_time=form)) for number, form in enumerate(forms)]
    times = file_rows(letters, OF).column("event_time").to_pylist()
    assert times[:2] == [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 1, 4, 5, 500_000, tzinfo=UTC)]
    assert times[2:] == [None, None, None]
    told = [
        next((h["value"] for h in row["headers"] if h["key"] == "__etl.errors.event.time"), None)
        for row in topic_rows(letters, OF).to_pylist()
    ]
    # A topic's header is a text, and need not leave out what Python cannot hold.
    assert told == [
        b"2026-01-02T03:04:05.000000Z",
        b"2026-01-02T01:04:05.500000Z",
        b"0044-03-15 12:00:00 BC",
        b"12026-01-01",
        None,
    ]


def test_rows_of_files_tell_no_headers_from_none() -> None:
    letters = [("1", _envelope()), ("2", _envelope(raw_headers="[]"))]
    assert file_rows(letters, OF).column("raw_headers").to_pylist() == [None, []]


def test_workers_that_make_them_do_not_import_pandas() -> None:
    script = (
        "import sys\nfrom datetime import UTC, datetime\nfrom spark_jobs.sinks import reading_letters\n"
        "from spark_jobs.sinks.letter_rows import LettersOf, file_rows, topic_rows\n"
        "of = LettersOf('p', 'q', 0, datetime.now(UTC))\n"
        f"letters = [('1', {_envelope(raw_headers='[]', event_time='2026-01-01')!r})]\n"
        "assert file_rows(letters, of).num_rows == topic_rows(letters, of).num_rows == 1\n"
        "print([name for name in ('pandas', 'psycopg', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
