"""Batches put together keep every row, its order and its columns, and stay bounded."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.sinks.gathering import gathered

TEXTS = st.lists(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=12), max_size=12)
SCHEMA = pa.schema([("id", pa.int32()), ("text", pa.string())])


def _batches(parts: list[list[str | None]]) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_arrays([list(range(len(part))), part], schema=SCHEMA) for part in parts]


@given(TEXTS, st.integers(1, 200), st.integers(1, 20))
def test_rows_and_order_stay(parts: list[list[str | None]], most_bytes: int, most_rows: int) -> None:
    batches = _batches(parts)
    found = list(gathered(batches, most_bytes, most_rows))
    assert [row for batch in found for row in batch.to_pylist()] == [
        row for batch in batches for row in batch.to_pylist()
    ]
    assert all(batch.schema == SCHEMA and batch.num_rows for batch in found)


@given(TEXTS, st.integers(1, 20))
def test_a_batch_ends_with_the_one_that_reaches_the_bound(parts: list[list[str | None]], most_rows: int) -> None:
    batches = _batches(parts)
    largest = max((batch.num_rows for batch in batches), default=0)
    found = [batch.num_rows for batch in gathered(batches, 1 << 30, most_rows)]
    assert all(most_rows <= rows < most_rows + largest for rows in found[:-1])


def test_large_batches_pass_as_they_are() -> None:
    batches = _batches([["x" * 100], ["y" * 100]])
    assert list(gathered(batches, most_bytes=50)) == batches
