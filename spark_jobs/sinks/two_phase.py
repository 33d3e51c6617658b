"""Strategy ``two_phase``, executor side: each task COPYs straight into the target and prepares its transaction.

A part holds its rows, its dead letters and a row in ``batch_part`` that says so; nobody sees any of it before the
driver has decided. A task's transaction never locks the fence's row: the lock would outlive PREPARE, and block the next
run's claim. A part that has lost rolls itself back after PREPARE: nobody else might look for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.part_names import PartNames
from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.committing import CommitPlan, fenced, require_newest, write_letters
from spark_jobs.sinks.copying import Session, sqlstate, transaction
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.parts import PartReport, in_task
from spark_jobs.sinks.refused import RefusedRows
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.unaltered import require_unaltered
from spark_jobs.sinks.writing import RowsPlan, begun, write_rows


@dataclass(frozen=True, slots=True)
class TwoPhasePlan:
    """All that a part's transaction needs.

    :param rows: the target. :param names: makes the prepared transactions' names.
    """

    session: Session
    rows: RowsPlan
    commit: CommitPlan
    names: PartNames


def prepare_part(plan: TwoPhasePlan, batches: Iterable[pa.RecordBatch], part: int, attempt: int) -> PartReport:
    """Prepare one part; errors of PostgreSQL come back in the report. A part without rows prepares nothing.

    :raises FencedError: a newer run has taken over; nothing of the part is left.
    :raises TargetAlteredError: nothing of the part is left.
    """
    report = PartReport(part=part, attempt=attempt)
    letters = LetterSpool(fail_fast=plan.commit.fail_fast)
    rows = begun(batches)
    try:
        with transaction(plan.session) as cursor:
            _prepare(plan, cursor, rows, report, letters)
    except Error as error:
        report.fail(sqlstate(error), str(error))
    finally:
        letters.close()
    return report


def _prepare(
    plan: TwoPhasePlan, cursor: Cursor, batches: Iterator[pa.RecordBatch], report: PartReport, letters: LetterSpool
) -> None:
    record = plan.commit.record
    require_newest(cursor, plan.commit)
    refused = RefusedRows(letters, plan.commit.limit) if plan.rows.careful else None
    report.doing = parts.ROWS
    report.written = write_rows(plan.rows, cursor, batches, report, letters, refused)
    report.doing = ""
    report.refused = refused.count if refused else 0
    if not report.written and not letters.count:
        cursor.run("ROLLBACK")
        return
    require_unaltered(cursor, plan.commit.target)
    write_letters(cursor, plan.commit, letters)
    name = plan.names.of(report.part, report.attempt)
    key = record.identity.key
    cursor.execute(statements.insert_part(plan.commit.tracker), (name, *key, str(report.written)))
    reach("two_phase.before_prepare")
    report.doing = parts.PREPARE
    cursor.run(f"PREPARE TRANSACTION {_literal(name)}")
    report.name = name
    reach("two_phase.after_prepare")
    report.doing = ""
    if _has_lost(cursor, statements.part_has_lost(plan.commit.tracker), (*record.right, *key[1:], name)):
        _roll_back(cursor, name, plan.session.role)
        raise fenced(record.identity.pipeline_id, record.run_id, record.epoch)


def _has_lost(cursor: Cursor, question: str, parameters: tuple[str, ...]) -> bool:
    # In a transaction: a question with parameters is prepared first and asked then, which a pooler would give to two
    # sessions.
    cursor.run("BEGIN")
    lost = bool(cursor.scalar(question, parameters))
    cursor.run("COMMIT")
    return lost


def _literal(name: str) -> str:
    # Digits, letters and colons only; see part_names.
    return f"'{name}'"


def _roll_back(cursor: Cursor, name: str, role: str | None) -> None:
    if role:
        # Who prepared it must roll it back, and the transaction's role ended with it. The session ends soon as well.
        cursor.run(f"SET ROLE {statements.quote_identifier(role)}")
    try:
        cursor.run(f"ROLLBACK PREPARED {_literal(name)}")
    except Error as error:
        # Whoever decided without this part may have been quicker.
        if sqlstate(error) != "42704":
            raise


def two_phase_task(plan: TwoPhasePlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow``: one report per partition."""
    return in_task(lambda batches, part, attempt: prepare_part(plan, batches, part, attempt))
