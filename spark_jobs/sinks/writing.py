"""What every strategy does with a part's rows: sort out, mark, COPY; the quick way, or the careful one. Executor side.

The quick way is one COPY after the other, and the first refused row fails the part: a clean batch pays nothing. The
careful way, by which the driver has such a batch done again, finds the refused rows and keeps their origin: source
coordinates and, where the source has one, the record as it came (:mod:`spark_jobs.sinks.origins`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from spark_jobs.sinks.careful import CarefulCopy
from spark_jobs.sinks.copying import copy_rows
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.early_look import EarlyLook
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.plain_arrow import long
from spark_jobs.sinks.refused import RefusedRows
from spark_jobs.sinks.sieve import Sieve, SieveText
from spark_jobs.sinks.sorting import ALONG, LetterSpool, passed_rows

_NUMBER_BITS = 40

Mark = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class RowsPlan:
    """Where a part's rows go.

    :param schema: unquoted, as is ``table``.
    :param columns: the data columns and their PostgreSQL types without modifiers.
    :param careful: whether refused rows are looked for.
    :param keep_source: whether the row's origin goes into the table as well: a merge may refuse the row.
    :param point: fault point between two bounded COPYs.
    :param sieve: how many refused rows are found, where the target is one that a sieve is for.
    :param look: at the first rows of a large part, before the others are copied.
    """

    schema: str
    table: str
    columns: tuple[tuple[str, str], ...]
    careful: bool = False
    keep_source: bool = False
    point: str = ""
    sieve: SieveText | None = None
    look: EarlyLook | None = None


def write_rows(
    plan: RowsPlan,
    cursor: Cursor,
    batches: Iterable[pa.RecordBatch],
    report: PartReport,
    letters: LetterSpool,
    refused: RefusedRows | None,
    mark: Mark | None = None,
) -> int:
    """COPY the rows that passed; return how many landed. Counts go into the report, dead letters into the spool.

    :param refused: where refused rows go; None fails the part at the first one.
    """
    names = [name for name, _ in plan.columns]
    kept = ALONG if refused is not None else ()
    rows = passed_rows(batches, names, report.tally, letters, kept)
    if mark is not None:
        rows = mark(rows)
    if refused is None:
        look = plan.look
        after_first = None if look is None else lambda: look(cursor, report)
        return copy_rows(cursor, plan.schema, plan.table, rows, plan.point, after_first)
    sieve = Sieve(cursor, plan.sieve.of(report.part, report.attempt)) if plan.sieve else None
    bases = dict(plan.columns)
    return CarefulCopy(cursor, plan.schema, plan.table, bases, refused, plan.keep_source, plan.point, sieve).copy(rows)


def begun(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Wait for the first batch, then return all of them."""
    iterator = iter(batches)
    first = next(iterator, None)
    return iter(()) if first is None else chain([first], iterator)


def marked(rows: Iterable[pa.RecordBatch], part: int, attempt: int) -> Iterator[pa.RecordBatch]:
    """Add to each row its number and its attempt."""
    for batch in numbered(rows, part):
        attempts = pa.repeat(long(attempt), batch.num_rows)
        yield pa.RecordBatch.from_arrays([*batch.columns, attempts], names=[*batch.schema.names, "_attempt"])


def numbered(rows: Iterable[pa.RecordBatch], part: int = 0) -> Iterator[pa.RecordBatch]:
    """Add to each row a number above 0 that no other row of the batch has: its part's first, then one more for each."""
    number = (part << _NUMBER_BITS) + 1
    for batch in rows:
        counted = pc.cumulative_sum(pa.repeat(long(1), batch.num_rows))  # type: ignore[attr-defined]  # made on import
        numbers = pc.add(counted, long(number - 1))  # type: ignore[attr-defined]
        number += batch.num_rows
        yield pa.RecordBatch.from_arrays([*batch.columns, numbers], names=[*batch.schema.names, "_seq"])
