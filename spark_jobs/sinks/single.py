"""Strategy ``single``: rows, dead letters and ledger row in one transaction of one session.

Runs in one Spark task for a stateless pipeline (the task has all the counts), on the driver for a bounded result of an
aggregation. Commit point: the COMMIT here. A second attempt finds the batch in the ledger and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic

import pyarrow as pa

from spark_jobs.contracts.errors import RowsSuppressedError
from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.applying import Merger, MergeText
from spark_jobs.sinks.committing import BooksOf, CommitPlan, Publish, begin_batch, commit, stateless_books
from spark_jobs.sinks.copying import Session, sqlstate, transaction
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.parts import PartReport, in_task
from spark_jobs.sinks.refused import RefusedRows, is_about_data
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.writing import RowsPlan, begun, numbered, write_rows

TEMPORARY = "etl_stage"


@dataclass(frozen=True, slots=True)
class SinglePlan:
    """All that one transaction needs, rendered on the driver.

    :param rows: where COPY puts the rows: the target, or the temporary staging table when there is a merge.
    :param create_staging: DDL of the temporary staging table, empty when rows go straight into the target.
    :param merge_refuses: whether that is known to refuse rows.
    :param before: of an overwrite: the statement that deletes the rows there are, and the question whether any is left.
    """

    session: Session
    rows: RowsPlan
    commit: CommitPlan
    create_staging: tuple[str, ...] = ()
    merge: MergeText | None = None
    merge_refuses: bool = False
    before: tuple[str, str] | None = None


def write_single(
    plan: SinglePlan,
    batches: Iterable[pa.RecordBatch],
    books_of: BooksOf,
    attempt: int = 0,
    publish: Publish | None = None,
) -> PartReport:
    """Write and commit one whole batch; errors of PostgreSQL come back in the report, to be classified.

    :param publish: of the driver, where dead letters are written elsewhere as well.
    """
    report = PartReport(part=0, attempt=attempt)
    letters = LetterSpool(fail_fast=plan.commit.fail_fast)
    started = monotonic()
    # The first rows may take long to come, and an open transaction would idle meanwhile.
    rows = begun(batches)
    try:
        with transaction(plan.session) as cursor:
            _write(plan, cursor, rows, books_of, report, letters, started, publish)
    except Error as error:
        # Once COMMIT was sent, an error without the server's word leaves it open whether it happened.
        open_question = report.state == parts.UNKNOWN and not sqlstate(error)
        report.fail(sqlstate(error), str(error))
        if open_question:
            report.state = parts.UNKNOWN
        if _by_another_attempt(report):
            report.state = parts.ALREADY_THERE
    finally:
        letters.close()
    return report


def _by_another_attempt(report: PartReport) -> bool:
    # Two attempts at one task (an executor was taken for lost): the ledger's key lets one of them commit.
    return report.sqlstate == "23505" and "batch_tracker_pkey" in report.message


def _write(
    plan: SinglePlan,
    cursor: Cursor,
    batches: Iterable[pa.RecordBatch],
    books_of: BooksOf,
    report: PartReport,
    letters: LetterSpool,
    started: float,
    publish: Publish | None,
) -> None:
    if not begin_batch(cursor, plan.commit):
        cursor.run("ROLLBACK")
        report.state = parts.ALREADY_THERE
        return
    reach("single.before_copy")
    refused = RefusedRows(letters, plan.commit.limit) if plan.rows.careful else None
    if plan.before:
        empty(cursor, *plan.before)
    for statement in plan.create_staging:
        cursor.run(statement)
    report.doing = parts.ROWS
    report.written = write_rows(plan.rows, cursor, batches, report, letters, refused, numbered if plan.merge else None)
    if plan.merge:
        report.doing = parts.MERGE
        _merge(plan, cursor, report, refused)
    report.refused = refused.count if refused else 0
    report.doing = ""
    commit(cursor, plan.commit, report, letters, books_of(report), started, publish)


def _merge(plan: SinglePlan, cursor: Cursor, report: PartReport, refused: RefusedRows | None) -> None:
    assert plan.merge is not None  # noqa: S101 - for the type checker
    before = refused.count if refused else 0
    merger = Merger(cursor, plan.merge, refused if plan.rows.keep_source else None, refuses=plan.merge_refuses)
    report.written, report.deduplicated = merge_rows(merger, report.written, before)


def merge_rows(merger: Merger, staged: int, refused_before: int = 0) -> tuple[int, int]:
    """Bring the ``staged`` rows into the target; return how many were written, and left out as the upsert's rules say.

    :param refused_before: what the merger's refused rows hold from before.
    :raises RowsSuppressedError: the server wrote fewer rows than it was given, and said nothing.
    """
    if not staged:
        return 0, 0
    present = merger.begin()
    written = merger.apply()
    refused = merger.refused.count - refused_before if merger.refused else 0
    left = staged - written - refused
    suppressed = merger.suppressed(left, written, refused, present)
    if suppressed:
        raise RowsSuppressedError(
            "The target table did not take every row",
            found=f"{suppressed} of {staged} rows were not written, and nothing was said about them",
            expected="all of them: a row that a trigger or a rule suppresses would be lost without a word",
            cure="Filter such rows in the pipeline, where they are counted, or change the trigger; change keys in the "
            "pipeline rather than in a trigger",
        )
    return written, left


def empty(cursor: Cursor, delete: str, any_left: str) -> None:
    """Delete all rows, or raise :class:`RowsSuppressedError` when one stays: the new rows would stand beside it."""
    cursor.run(delete)
    if cursor.scalar(any_left):
        raise RowsSuppressedError(
            "The target table did not give up every row",
            found="rows that are still there after DELETE, which said nothing",
            expected="an empty table, for the rows that replace them",
            cure="Change the trigger or the rule that keeps rows from being deleted, or use another writeMode",
        )


def single_task(plan: SinglePlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow`` over a DataFrame of one partition."""
    return in_task(lambda batches, _part, attempt: write_single(plan, batches, stateless_books, attempt))


def refused_rows(report: PartReport) -> bool:
    """Tell whether a part failed because the target refused a row of it."""
    return report.state == parts.FAILED and report.doing in (parts.ROWS, parts.MERGE) and is_about_data(report.sqlstate)
