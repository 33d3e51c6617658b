"""Arrow without pandas: the arrays are pyarrow's own, and a worker that writes a part never imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.sinks.plain_arrow import flags, long, longs, texts, tiny

# As a task does it: rows with their outcomes, a dead letter, a numbered copy, a statement with parameters, the report.
WRITE = """
import sys
import pyarrow as pa
from spark_jobs.sinks.copying import Session, transaction
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.staged import _letters
from spark_jobs.sinks.writing import RowsPlan, marked, write_rows

uri, rows = sys.argv[1:]
report, letters = PartReport(0, 7), LetterSpool()
with transaction(Session(uri, "test", "30s", "30s")) as cursor:
    with pa.ipc.open_file(rows) as file:
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    mark = lambda batches: marked(batches, part=0, attempt=7)
    plan = RowsPlan("public", "result", (("id", "bigint"), ("name", "text")))
    report.written = write_rows(plan, cursor, batches, report, letters, None, mark)
    assert cursor.scalar("SELECT count(*) FROM result WHERE name = $1", ("a",)) == 2
    cursor.run("COMMIT")
assert _letters(["x", None], 7, None).num_rows == 2
assert report.to_batch().to_pylist()[0]["written"] == 3
assert (report.tally.passed, report.tally.dead_lettered, letters.count) == (3, 1, 1)
print("pandas" in sys.modules)
import pandas
print("pandas" in sys.modules)
"""


def test_a_worker_that_writes_a_part_does_not_import_pandas(database: Any, tmp_path: Path) -> None:
    with database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id bigint, name text, _seq bigint, _attempt bigint)")
    columns = {
        "id": pa.array([1, 2, 3, 4], pa.int64()),
        "name": pa.array(["a", "a", None, "b"]),
        "__outcome": pa.array([0, 0, 0, 1], pa.int8()),
        "__letter": pa.array([None, None, None, '{"stage": "parse"}']),
    }
    rows = tmp_path / "rows.arrow"
    table = pa.table(columns)
    with pa.ipc.new_file(rows, table.schema) as file:
        file.write_table(table)
    command = [sys.executable, "-c", WRITE, database.uri, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent.parent)
    assert done.stdout.split() == ["False", "True"], done.stderr
    with database.connect() as conn:
        found = conn.execute("SELECT * FROM result ORDER BY id").fetchall()
    assert found == [(1, "a", 1, 7), (2, "a", 2, 7), (3, None, 3, 7)]


@given(some.lists(some.none() | some.text(some.characters(exclude_categories=["Cs"])), max_size=20))
def test_texts_are_what_pyarrow_makes_of_them(values: list[str | None]) -> None:
    made = texts(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))


@given(some.lists(some.booleans(), max_size=40))
def test_flags_are_what_pyarrow_makes_of_them(values: list[bool]) -> None:
    made = flags({line for line, value in enumerate(values, start=1) if value}, len(values))
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.bool_()))


@given(some.lists(some.none() | some.integers(-(2**63), 2**63 - 1), max_size=20))
def test_longs_are_what_pyarrow_makes_of_them(values: list[int | None]) -> None:
    made = longs(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.int64()))


def test_scalars_and_what_does_not_fit() -> None:
    assert long(2**63 - 1).equals(pa.scalar(2**63 - 1, pa.int64()))
    assert tiny(-128).equals(pa.scalar(-128, pa.int8()))
    with pytest.raises(OverflowError):
        longs([2**63])
    with pytest.raises(UnicodeEncodeError):
        texts(["\ud83d"])
