"""Rows are read while the ones before them are written. Executor side.

The socket between Spark's JVM and a Python worker holds less than one batch: without a reader of its own the JVM would
stand still while the worker writes, and PostgreSQL while the worker reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread

import pyarrow as pa

_BYTES = 12 << 20
"""What may be read ahead, with what is being written; of larger batches there is one at a time."""


@contextmanager
def read_ahead(
    batches: Iterable[pa.RecordBatch],
    through: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]] = iter,
    most_bytes: int = _BYTES,
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield an iterator over ``through(batches)``, in their order, which a thread reads ahead.

    An error of the source is raised where its batch would have come. At the block's end nobody reads any more, for
    which one of ``batches`` may have to be waited for; the others are left where they are.

    :param most_bytes: no more is read while the batches that were read, and the one that is used, are as large.
    """
    ahead = _Ahead(most_bytes)
    reader = Thread(target=ahead.read, args=(batches, through), name="etl-read-ahead", daemon=True)
    reader.start()
    try:
        yield ahead.rows()
    finally:
        ahead.stop()
        reader.join()


class _Ahead:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._changed = Condition()
        self._ready: deque[pa.RecordBatch] = deque()
        self._size = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def read(
        self,
        batches: Iterable[pa.RecordBatch],
        through: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]],
    ) -> None:
        """Read until the end, an error, or until nobody wants any more."""
        try:
            for batch in through(self._wanted(batches)):
                self._add(batch)
        except BaseException as error:  # noqa: BLE001 - raised again where the rows are used
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wanted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        iterator = iter(batches)
        while self._has_room() and (batch := next(iterator, None)) is not None:
            yield batch

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._size < self._most_bytes)
            return not self._stopped

    def _add(self, batch: pa.RecordBatch) -> None:
        with self._changed:
            self._ready.append(batch)
            self._size += batch.nbytes
            self._changed.notify_all()

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield what was read, and raise what ended it."""
        while (batch := self._next()) is not None:
            yield batch
            with self._changed:
                # Whoever asks for the next one is done with this one.
                self._size -= batch.nbytes
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _next(self) -> pa.RecordBatch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            return self._ready.popleft() if self._ready else None

    def stop(self) -> None:
        """Let the reader end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
