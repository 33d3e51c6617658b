"""Strategy ``staged``, executor side: each task COPYs its rows into an unlogged staging table, in its own transaction.

Nothing of it is visible to anybody: the driver's one transaction merges the winners' rows. A lost, repeated or
speculative attempt leaves rows under its own attempt number, which no merge takes. Beside the dead letters each attempt
says how many rows it staged: after a crash of the server both tables are empty, and the merge sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.copying import Session, copy_rows, sqlstate, transaction
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.parts import PartReport, in_task
from spark_jobs.sinks.plain_arrow import longs, texts
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sorting import LetterSpool, passed_rows
from spark_jobs.sinks.writing import RowsPlan, marked, write_rows


@dataclass(frozen=True, slots=True)
class StagedPlan:
    """Where the parts go.

    :param rows: the staging table of the rows; None when only dead letters are looked for.
    :param letters: staging table of the dead letters (``envelope`` TEXT, ``_attempt`` BIGINT), and of one row for each
        attempt that has no envelope and says in ``_rows`` BIGINT how many rows it staged.
    :param fail_fast: whether the first dead letter ends the part.
    """

    session: Session
    schema: str
    rows: RowsPlan | None
    letters: str
    limit: Limit
    fail_fast: bool = False


def stage_part(plan: StagedPlan, batches: Iterable[pa.RecordBatch], part: int, attempt: int) -> PartReport:
    """Stage one part; errors of PostgreSQL come back in the report."""
    report = PartReport(part=part, attempt=attempt)
    letters = LetterSpool(fail_fast=plan.fail_fast)
    first = next(iterator := iter(batches), None)
    if first is None:
        return report
    try:
        with transaction(plan.session) as cursor:
            _stage(plan, cursor, _chain(first, iterator), report, letters)
            reach("staged.before_part_commit")
            cursor.run("COMMIT")
            reach("staged.after_part_commit")
    except Error as error:
        report.fail(sqlstate(error), str(error))
    finally:
        letters.close()
    return report


def _stage(
    plan: StagedPlan, cursor: Cursor, batches: Iterator[pa.RecordBatch], report: PartReport, letters: LetterSpool
) -> None:
    if plan.rows is None:
        for _ in passed_rows(batches, [], report.tally, letters):
            continue
    else:
        refused = RefusedRows(letters, plan.limit) if plan.rows.careful else None
        report.doing = parts.ROWS
        report.written = write_rows(
            plan.rows, cursor, batches, report, letters, refused, lambda rows: marked(rows, report.part, report.attempt)
        )
        report.doing = ""
        report.refused = refused.count if refused else 0
    copy_rows(cursor, plan.schema, plan.letters, letter_batches(letters, report))


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def letter_batches(letters: LetterSpool, report: PartReport) -> Iterator[pa.RecordBatch]:
    """Yield what an attempt leaves in the letters' staging table."""
    for chunk in letters.batches():
        yield _letters(chunk, report.attempt, None)
    yield _letters([None], report.attempt, report.written)


def _letters(envelopes: Sequence[str | None], attempt: int, rows: int | None) -> pa.RecordBatch:
    size = len(envelopes)
    columns = [texts(envelopes), longs([attempt] * size), longs([rows] * size)]
    return pa.RecordBatch.from_arrays(columns, ["envelope", "_attempt", "_rows"])


def staged_task(plan: StagedPlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow``: one report per partition."""
    return in_task(lambda batches, part, attempt: stage_part(plan, batches, part, attempt))
