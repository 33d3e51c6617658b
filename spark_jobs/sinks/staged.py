"""Strategy ``staged``, executor side: each task COPYs its rows into an unlogged staging table, in its own transaction.

Nothing of it is visible to anybody: the driver's one transaction merges the winners' rows. A lost, repeated or
speculative attempt leaves rows under its own attempt number, which no merge takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.copying import Cursor, Session, copy_rows, run, sqlstate, transaction
from spark_jobs.sinks.parts import PartReport, in_task
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sorting import LetterSpool, passed_rows
from spark_jobs.sinks.writing import RowsPlan, marked, write_rows


@dataclass(frozen=True, slots=True)
class StagedPlan:
    """Where the parts go.

    :param rows: the staging table of the rows; None when only dead letters are looked for.
    :param letters: staging table of the dead letters (``envelope`` TEXT, part, attempt, number).
    """

    session: Session
    schema: str
    rows: RowsPlan | None
    letters: str
    limit: Limit


def stage_part(plan: StagedPlan, batches: Iterable[pa.RecordBatch], part: int, attempt: int) -> PartReport:
    """Stage one part; errors of PostgreSQL come back in the report."""
    report = PartReport(part=part, attempt=attempt)
    letters = LetterSpool()
    first = next(iterator := iter(batches), None)
    if first is None:
        return report
    try:
        with transaction(plan.session) as cursor:
            _stage(plan, cursor, _chain(first, iterator), report, letters)
            reach("staged.before_part_commit")
            run(cursor, "COMMIT")
            reach("staged.after_part_commit")
    except adbc.Error as error:
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
    copy_rows(cursor, plan.schema, plan.letters, marked(_letter_batches(letters), report.part, report.attempt))


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _letter_batches(letters: LetterSpool) -> Iterator[pa.RecordBatch]:
    for chunk in letters.batches():
        yield pa.RecordBatch.from_pydict({"envelope": pa.array(chunk, pa.string())})


def staged_task(plan: StagedPlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow``: one report per partition."""
    return in_task(lambda batches, part, attempt: stage_part(plan, batches, part, attempt))
