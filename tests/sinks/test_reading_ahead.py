"""Rows read ahead come in order and once, with the source's error in its place; nothing reads on after the end."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.sinks.reading_ahead import read_ahead


def _batch(number: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": [number]})


def _numbers(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [batch.column("id")[0].as_py() for batch in batches]


@given(st.integers(0, 30))
def test_all_batches_in_their_order(count: int) -> None:
    with read_ahead(map(_batch, range(count))) as batches:
        assert _numbers(batches) == list(range(count))


@given(st.integers(0, 10))
def test_an_error_comes_behind_the_batches_before_it(count: int) -> None:
    def source() -> Iterator[pa.RecordBatch]:
        yield from map(_batch, range(count))
        raise OSError("the JVM is gone")

    found: list[int] = []
    with pytest.raises(OSError, match="the JVM is gone"), read_ahead(source()) as batches:
        found.extend(batch.column("id")[0].as_py() for batch in batches)
    assert found == list(range(count))


@given(st.integers(0, 5))
def test_who_stops_leaves_the_rest_to_others(used: int) -> None:
    asked = 0

    def source() -> Iterator[pa.RecordBatch]:
        nonlocal asked
        while True:
            asked += 1
            yield _batch(asked)

    with read_ahead(source(), most_bytes=2 * _batch(0).nbytes) as batches:
        for _ in range(used):
            next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name == "etl-read-ahead"]
    assert used <= asked <= used + 2


def test_of_large_batches_there_is_one_at_a_time() -> None:
    asked: list[int] = []

    def source() -> Iterator[pa.RecordBatch]:
        for number in range(3):
            asked.append(number)
            yield _batch(number)

    with read_ahead(source(), most_bytes=1) as batches:
        for number in range(3):
            assert _numbers(iter([next(batches)])) == [number]
            assert asked == list(range(number + 1))


def test_one_batch_at_most_is_waited_for_at_the_end() -> None:
    asked = 0
    stopping = threading.Event()

    def source() -> Iterator[pa.RecordBatch]:
        nonlocal asked
        while True:
            asked += 1
            yield _batch(asked)
            if asked == 10:
                stopping.wait(30)

    def all_at_once(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield pa.Table.from_batches(batches).to_batches()[0]

    with read_ahead(source(), through=all_at_once):
        threading.Timer(0.2, stopping.set).start()
    assert asked <= 11


def test_the_next_batch_is_read_while_one_is_used() -> None:
    second = threading.Event()

    def source() -> Iterator[pa.RecordBatch]:
        yield _batch(1)
        second.set()
        yield _batch(2)

    with read_ahead(source()) as batches:
        assert _numbers(iter([next(batches)])) == [1]
        assert second.wait(30)
        assert _numbers(batches) == [2]
