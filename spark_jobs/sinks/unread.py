"""What is left of a task's rows is not made for nobody. Executor side.

A worker whose task ends before its rows do reads on until Spark closes the connection, as quickly as it can
(``pyspark/daemon.py``, "wait for closing"). Spark writes rows as long as they are taken, and looks for the task's
result only when they are not (``BasePythonRunner.ReaderInputStream``): it would read and parse the rest of the batch,
which is half the time of loading it. So nobody reads for a while: Spark, which never blocks in a write, finds the
result.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread
from time import sleep
from types import FrameType

import pyarrow as pa

# Within them Spark has filled what a connection holds, some megabytes; else it makes the rest, as it would have.
_SECONDS = 10.0


@contextmanager
def held_back(batches: Iterable[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield an iterator over a task's rows; of those that are left at the block's end Spark makes no more.

    To be used in the worker's own thread, below its ``main``. The worker is not used again then, as ever: what it finds
    behind the result is not Spark's mark behind all rows.
    """
    ended = False

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal ended
        yield from batches
        ended = True

    try:
        yield rows()
    finally:
        connection = None if ended else _connection()
        if connection is not None:
            leave_unread(connection, _SECONDS)


def leave_unread(connection: socket.socket, seconds: float) -> None:
    """Let ``connection.recv`` wait, and after some seconds for the end of what the other side sends.

    It is a descriptor of its own: the copies of it that the worker reads and writes by stay what they are.
    """
    kept = connection.dup()
    instead, end = socket.socketpair()
    Thread(target=_read_later, args=(kept, end, seconds), name="etl-unread", daemon=True).start()
    with closing(instead):
        os.dup2(instead.fileno(), connection.fileno(), inheritable=False)


def _read_later(connection: socket.socket, end: socket.socket, seconds: float) -> None:
    # Spark's side has long been closed then; what it had sent lies before that mark.
    with closing(end), closing(connection), suppress(OSError):
        sleep(seconds)
        while connection.recv(1 << 16):
            continue


def _connection() -> socket.socket | None:
    # Spark does not hand it out. A worker that no daemon made has none, and does not wait for the closing.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "worker" and isinstance(found := frame.f_locals.get("sock"), socket.socket):
            return found
        frame = frame.f_back
    return None
