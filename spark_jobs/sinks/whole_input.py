"""Tell the end of a task's rows from the end of the connection that they came over. Executor side.

Where Spark's side of a task fails (a file is broken, an expression raises, the executor is killed) it closes the
connection to the Python worker. It writes whole Arrow messages, and an Arrow stream may end without its mark
(https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format): rows that were cut off look like all of them,
and a task that commits would commit a part of the batch. Behind all rows Spark sends one more number
(``pyspark/worker.py``, END_OF_STREAM): whoever does not find it has not seen all rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from types import FrameType
from typing import Any, cast

import pyarrow as pa

from spark_jobs.contracts.errors import ExecutorsNotReadyError, TransientError

Stream = Any
"""A buffered binary stream that can be peeked into."""


def worker_input() -> Stream:
    """Return the stream that Spark's worker reads this task's rows from; Spark does not hand it out.

    To be called in the worker's own thread, below its ``main``.

    :raises ExecutorsNotReadyError: this is no worker as pyspark 4.2 has it: nothing would tell when rows are missing.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # A frame's locals are copied when they are looked at: only the one frame's are.
        if frame.f_code.co_name == "main":
            stream = frame.f_locals.get("infile")
            if isinstance(stream, BufferedIOBase) and hasattr(stream, "peek"):
                return stream
        frame = frame.f_back
    raise ExecutorsNotReadyError(
        "The Python worker does not show the stream that its rows come from",
        found="no worker as pyspark has it: without the stream nobody can tell whether all rows came",
        expected="pyspark's own daemon and worker, of the tested versions",
        cure="Remove spark.python.daemon.module and spark.python.worker.module, or install the tested pyspark",
    )


def whole(batches: Iterable[pa.RecordBatch], stream: Stream) -> Iterator[pa.RecordBatch]:
    """Yield the batches, which come from ``stream``.

    :raises TransientError: instead of the end, when Spark closed the connection before all rows had come.
    """
    yield from batches
    # Waits for the number behind the rows, which Spark sends without waiting for anything.
    if not cast("bytes", stream.peek(1)):
        raise TransientError(
            "Spark ended the connection before all rows of the task had come",
            found="the stream's end between two batches",
            expected="the mark behind the last one",
            cure="Look for the error of the same task in Spark's log: it is the cause",
        )
