"""Strategy ``staged``, executor side: each task COPYs its rows into an unlogged staging table, in its own transaction.

Nothing of it is visible to anybody: the driver's one transaction merges the winners' rows. A lost, repeated or
speculative attempt leaves rows under its own attempt number, which no merge takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from spark_jobs.sinks import parts
from spark_jobs.sinks.copying import Session, copy_rows, sqlstate, transaction
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.single import marked
from spark_jobs.sinks.sorting import LetterSpool, passed_rows


@dataclass(frozen=True, slots=True)
class StagedPlan:
    """Where the parts go.

    :param schema: schema of the staging tables (unquoted).
    :param rows: staging table of the rows; empty when only dead letters are looked for.
    :param letters: staging table of the dead letters (``envelope`` TEXT, part, attempt, number).
    """

    session: Session
    schema: str
    rows: str
    letters: str
    columns: tuple[str, ...]


def stage_part(plan: StagedPlan, batches: Iterable[pa.RecordBatch], part: int, attempt: int) -> PartReport:
    """Stage one part; errors of PostgreSQL come back in the report."""
    report = PartReport(part=part, attempt=attempt)
    letters = LetterSpool()
    first = next(iterator := iter(batches), None)
    if first is None:
        return report
    try:
        with transaction(plan.session) as cursor:
            rows = passed_rows(chain([first], iterator), list(plan.columns), report.tally, letters)
            if plan.rows:
                report.written = copy_rows(cursor, plan.schema, plan.rows, marked(rows, part, attempt))
            else:
                for _ in rows:
                    continue
            copy_rows(cursor, plan.schema, plan.letters, marked(_letter_batches(letters), part, attempt))
            cursor.execute("COMMIT")
    except adbc.Error as error:
        report.state, report.sqlstate, report.message = parts.FAILED, sqlstate(error), str(error)
    finally:
        letters.close()
    return report


def _letter_batches(letters: LetterSpool) -> Iterator[pa.RecordBatch]:
    for chunk in letters.batches():
        yield pa.RecordBatch.from_pydict({"envelope": pa.array(chunk, pa.string())})


def staged_task(plan: StagedPlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow``: one report per partition."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext  # noqa: PLC0415 - only in a task

        context = TaskContext.get()
        part = context.partitionId() if context else 0
        attempt = context.taskAttemptId() if context else 0
        yield stage_part(plan, batches, part, attempt).to_batch()

    return run
