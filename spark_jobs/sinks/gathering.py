"""Small Arrow batches into larger ones. Executor side.

Spark fills a batch row by row and, to bound its bytes, asks all columns for their size after each row: that takes a
quarter of the time of an append. It is told to bound the rows instead (``spark_jobs/runtime/session.py``), so few that
even large ones fit into memory; what a batch costs in Python and in libpq is paid for some thousand rows at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

_BYTES = 4 << 20
_ROWS = 20_000


def gathered(
    batches: Iterable[pa.RecordBatch], most_bytes: int = _BYTES, most_rows: int = _ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in the same order, in batches that end with the one that reaches a bound.

    Batches without rows are left out.
    """
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        rows += batch.num_rows
        # What its buffers hold: what of it is used (nbytes) takes longer to ask than the batch to read.
        size += batch.get_total_buffer_size()
        if rows >= most_rows or size >= most_bytes:
            yield from _together(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield from _together(waiting)


def _together(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    # Usually one: a column whose values are more than two gigabytes stays in pieces.
    return batches if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()
