"""Strategy ``single``: rows, dead letters and ledger row in one transaction of one session.

Runs in one Spark task for a stateless pipeline (the task has all the counts), on the driver for a bounded result of an
aggregation. Commit point: the COMMIT here. A second attempt finds the batch in the ledger and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from time import monotonic
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from spark_jobs.contracts.errors import BooksDoNotBalanceError, EtlError, FencedError, RowsSuppressedError
from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.records import BatchRecord, Books, StoredBatch, settle
from spark_jobs.sinks import parts
from spark_jobs.sinks.copying import Cursor, Session, copy_rows, scalar, sqlstate, transaction
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.sorting import LetterSpool, passed_rows

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SinglePlan:
    """All that one transaction needs, rendered on the driver.

    :param tracker: the tracker's schema, quoted.
    :param record: the ledger row but for its books and event times; its duration is what the batch took so far.
    :param event: the progress event as a JSON object, but for its ``rows``.
    :param create_staging: DDL of the temporary staging table, empty when rows go straight into the target.
    :param drops_same_keys: whether the merge keeps one row a key (upsert).
    :param merge: statement whose answer is the number of rows it wrote from the staging table.
    :param before: statement to run first (overwrite), or empty.
    :param letters: statement that stores a JSON array of dead letters.
    :param letters_from: statement that takes dead letters from where a second look staged them, and whose answer is
        their number (``letters_expected``); or empty.
    """

    session: Session
    tracker: str
    record: BatchRecord
    event: dict[str, Any]
    schema: str
    table: str
    columns: tuple[str, ...]
    letters: str
    create_staging: str = ""
    staging: str = ""
    merge: str = ""
    before: str = ""
    letters_from: str = ""
    letters_expected: int = 0
    drops_same_keys: bool = False


BooksOf = Callable[[PartReport], Books]


def stateless_books(report: PartReport) -> Books:
    """Return the books of a pipeline whose passed rows are the rows that reach the sink."""
    tally = report.tally
    return Books(
        source=tally.source,
        passed=tally.passed,
        dead_lettered=tally.dead_lettered,
        filtered=tally.filtered,
        sink=tally.passed,
        written=report.written,
        write_deduplicated=report.deduplicated,
    )


def write_single(
    plan: SinglePlan, batches: Iterable[pa.RecordBatch], books_of: BooksOf, attempt: int = 0
) -> PartReport:
    """Write and commit one whole batch; errors of PostgreSQL come back in the report, to be classified."""
    report = PartReport(part=0, attempt=attempt)
    letters = LetterSpool()
    started = monotonic()
    # The first rows may take long to come, and an open transaction would idle meanwhile.
    rows = begun(batches)
    try:
        with transaction(plan.session) as cursor:
            _write(plan, cursor, rows, books_of, report, letters, started)
    except adbc.Error as error:
        # Once COMMIT was sent, an error without the server's word leaves it open whether it happened.
        open_question = report.state == parts.UNKNOWN and not sqlstate(error)
        report.state = parts.UNKNOWN if open_question else parts.FAILED
        report.sqlstate, report.message = sqlstate(error), str(error)
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
) -> None:
    stored = scalar(cursor, statements.find_batch(plan.tracker), plan.record.identity.key)
    if settle(StoredBatch.from_json(stored) if stored else None, plan.record.identity) == "committed":
        cursor.execute("ROLLBACK")
        report.state = parts.ALREADY_THERE
        return
    _write_rows(plan, cursor, passed_rows(batches, list(plan.columns), report.tally, letters), report)
    _write_letters(plan, cursor, letters)
    _write_ledger(plan, cursor, books_of(report), report, started)
    report.state = parts.UNKNOWN
    cursor.execute("COMMIT")
    report.state = parts.COMMITTED


def _write_rows(plan: SinglePlan, cursor: Cursor, rows: Iterator[pa.RecordBatch], report: PartReport) -> None:
    if plan.before:
        cursor.execute(plan.before)
    if not plan.merge:
        report.written = copy_rows(cursor, plan.schema, plan.table, rows)
        return
    cursor.execute(plan.create_staging)
    staged = copy_rows(cursor, "pg_temp", plan.staging, marked(rows, 0, report.attempt))
    report.written = int(scalar(cursor, plan.merge)) if staged else 0
    report.deduplicated = staged - report.written if plan.drops_same_keys else 0
    require_all_written(staged, report.written, upsert=plan.drops_same_keys)


def require_all_written(staged: int, written: int, *, upsert: bool) -> None:
    """Raise :class:`RowsSuppressedError` when the server wrote fewer rows than it was given."""
    if not upsert and written != staged:
        raise RowsSuppressedError(
            "The target table did not take every row",
            found=f"{written} of {staged} rows were inserted",
            expected="all of them: a row that a trigger or a rule suppresses would be lost without a word",
            cure="Filter such rows in the pipeline, where they are counted, or change the trigger",
        )


def require_all_letters(found: int, expected: int) -> None:
    """Raise :class:`BooksDoNotBalanceError` when staged dead letters are gone: the table is empty after a crash."""
    if found != expected:
        raise BooksDoNotBalanceError(
            "The staging table does not hold the dead letters that the tasks staged",
            found=f"{found} dead letters",
            expected=f"{expected}",
            cure="Nothing was committed; the batch is done again (did the server restart?)",
        )


def _write_letters(plan: SinglePlan, cursor: Cursor, letters: LetterSpool) -> None:
    pipeline, query, batch = plan.record.identity.key
    for chunk in letters.batches():
        cursor.execute(plan.letters, (pipeline, query, batch, json.dumps(chunk)))
    if plan.letters_from:
        require_all_letters(int(scalar(cursor, plan.letters_from)), plan.letters_expected)


def _write_ledger(plan: SinglePlan, cursor: Cursor, books: Books, report: PartReport, started: float) -> None:
    record = replace(
        plan.record,
        books=books,
        event_time_min=moment(report.tally.event_time_min) or plan.record.event_time_min,
        event_time_max=moment(report.tally.event_time_max) or plan.record.event_time_max,
        duration_ms=plan.record.duration_ms + int((monotonic() - started) * 1000),
    )
    cursor.execute(statements.insert_batch(plan.tracker), (record.row_json(),))
    if record.files:
        cursor.execute(statements.insert_files(plan.tracker), (record.files_json(),))
    if record.gaps:
        cursor.execute(statements.insert_gaps(plan.tracker), (record.gaps_json(),))
    cursor.execute(statements.notify(), (json.dumps({**plan.event, "rows": books.written}),))
    identity = record.identity
    holds = scalar(
        cursor, statements.lock_epoch(plan.tracker), (identity.pipeline_id, str(record.epoch), record.run_id)
    )
    if holds is not True:
        raise fenced(identity.pipeline_id, record.run_id, record.epoch)


def fenced(pipeline_id: str, run_id: str, epoch: int) -> FencedError:
    """Return the error of a driver that a newer run has taken over from."""
    return FencedError(
        f"Run {run_id} (epoch {epoch}) of pipeline {pipeline_id} may not commit any more",
        found="a newer run of the pipeline was registered",
        expected="to be the pipeline's newest run",
        cure="Nothing was written by this run since; look at the newer run",
    )


def begun(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Wait for the first batch, then return all of them."""
    iterator = iter(batches)
    first = next(iterator, None)
    return iter(()) if first is None else chain([first], iterator)


def marked(rows: Iterable[pa.RecordBatch], part: int, attempt: int) -> Iterator[pa.RecordBatch]:
    """Add to each row its part, attempt and number within the part."""
    number = 0
    for batch in rows:
        size = batch.num_rows
        columns = [
            *batch.columns,
            pa.repeat(pa.scalar(part, pa.int32()), size),
            pa.repeat(pa.scalar(attempt, pa.int64()), size),
            pa.array(range(number, number + size), pa.int64()),
        ]
        number += size
        yield pa.RecordBatch.from_arrays(columns, names=[*batch.schema.names, "_part", "_attempt", "_seq"])


def moment(microseconds: int | None) -> datetime | None:
    """Return the instant that many microseconds after 1970; beyond what Python knows, the nearest that it does."""
    if microseconds is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        # Spark's timestamps reach further than year 9999: one odd event time must not stop the run at each try.
        return (datetime.max if microseconds > 0 else datetime.min).replace(tzinfo=UTC)


def single_task(plan: SinglePlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow`` over a DataFrame of one partition."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext  # noqa: PLC0415 - only in a task

        context = TaskContext.get()
        attempt = context.taskAttemptId() if context else 0
        try:
            report = write_single(plan, batches, stateless_books, attempt)
        except EtlError as error:
            told = json.dumps(error.to_json())
            report = PartReport(0, attempt, parts.FAILED, sqlstate=type(error).__name__, message=told)
        yield report.to_batch()

    return run
