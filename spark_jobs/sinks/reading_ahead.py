"""Rows are read while the ones before them are written. Executor side.

The socket between Spark's JVM and a Python worker holds less than one batch: without a reader of its own the JVM would
stand still while the worker writes, and PostgreSQL while the worker reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

import pyarrow as pa

_BATCHES = 2
_SECONDS = 0.05

_Item = Any
"""A batch, the error in the place of one, or None at the end."""


@contextmanager
def read_ahead(
    batches: Iterable[pa.RecordBatch],
    through: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]] = iter,
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield an iterator over ``through(batches)``, in their order, of which a thread has two ready ahead.

    An error of the source is raised where its batch would have come. At the block's end nobody reads any more, for
    which one of ``batches`` may have to be waited for; the others are left where they are.
    """
    queue: Queue[_Item] = Queue(_BATCHES)
    stop = Event()
    arguments = (through(_until(stop, batches)), queue, stop)
    reader = Thread(target=_read, args=arguments, name="etl-read-ahead", daemon=True)
    reader.start()
    try:
        yield _rows(queue)
    finally:
        stop.set()
        reader.join()


def _read(batches: Iterable[pa.RecordBatch], queue: Queue[_Item], stop: Event) -> None:
    try:
        for batch in batches:
            _put(queue, batch, stop)
        _put(queue, None, stop)
    except BaseException as error:  # noqa: BLE001 - raised again where the rows are used
        _put(queue, error, stop)


def _until(stop: Event, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        if stop.is_set():
            return


def _put(queue: Queue[_Item], item: _Item, stop: Event) -> None:
    while not stop.is_set():
        try:
            queue.put(item, timeout=_SECONDS)
        except Full:
            continue
        return


def _rows(queue: Queue[_Item]) -> Iterator[pa.RecordBatch]:
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
