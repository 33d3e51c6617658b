"""Rows that were cut off are not taken for all of them; with Spark itself in tests/spark/test_failing_sources.py."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest

from spark_jobs.contracts.errors import EtlError, ExecutorsNotReadyError, TransientError
from spark_jobs.sinks.parts import PartReport, in_task
from spark_jobs.sinks.reports import raise_for
from spark_jobs.sinks.whole_input import whole, worker_input

BATCH = pa.RecordBatch.from_pydict({"id": [1, 2, 3]})


def _sent(*, ended: bool) -> io.BufferedReader:
    sink = io.BytesIO()
    writer = pa.RecordBatchStreamWriter(sink, BATCH.schema)
    for _ in range(3):
        writer.write_batch(BATCH)
    cut_off = sink.getvalue()
    writer.close()
    return io.BufferedReader(io.BytesIO(sink.getvalue() + b"\xff\xff\xff\xfc" if ended else cut_off))


def test_all_rows_and_the_mark_behind_them() -> None:
    stream = _sent(ended=True)
    assert list(whole(pa.ipc.open_stream(stream), stream)) == [BATCH] * 3
    assert stream.read() == b"\xff\xff\xff\xfc"


def test_rows_that_end_between_two_batches_are_an_error() -> None:
    stream = _sent(ended=False)
    found = []
    with pytest.raises(TransientError, match="before all rows of the task had come"):
        found.extend(whole(pa.ipc.open_stream(stream), stream))


def test_the_stream_is_found_below_the_workers_main() -> None:
    def main(infile: Any) -> Any:
        def process() -> Any:
            return worker_input()

        return process() if infile else None

    stream = _sent(ended=True)
    assert main(stream) is stream


def test_without_a_worker_there_is_no_stream() -> None:
    with pytest.raises(ExecutorsNotReadyError, match="does not show the stream"):
        worker_input()


@pytest.mark.parametrize("kind", [ExecutorsNotReadyError, TransientError])
def test_a_tasks_own_error_comes_to_the_driver_as_what_it_is(kind: type[EtlError]) -> None:
    def write(_batches: Any, _part: int, _attempt: int) -> PartReport:
        raise kind("It failed", found="this", expected="that", cure="Do something")

    [report] = in_task(write)(iter([]))
    with pytest.raises(kind, match="Do something") as caught:
        raise_for(PartReport.read(report.to_pylist())[0])
    assert caught.value.found == "this"
