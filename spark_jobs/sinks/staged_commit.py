"""Strategy ``staged``, driver side: have the parts staged, then merge and commit them in one transaction."""

from __future__ import annotations

from time import monotonic
from typing import Any

from pyspark.sql import DataFrame

from spark_jobs.contracts.config import WriteMode
from spark_jobs.contracts.errors import BooksDoNotBalanceError, DeadLetterRefusedError
from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.applying import Merger
from spark_jobs.sinks.batch_result import Looked
from spark_jobs.sinks.care import Care
from spark_jobs.sinks.committing import Publish, begin_batch, commit
from spark_jobs.sinks.copying import copy_rows, sqlstate, transaction
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.parts import REPORT_SCHEMA, PartReport
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.refused import RefusedRows
from spark_jobs.sinks.reports import RowsRefusedError, raise_for, read_reports
from spark_jobs.sinks.single import empty, merge_rows
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.staged import letter_batches, staged_task
from spark_jobs.sinks.staging import Staged, create, drop
from spark_jobs.transforms.try_eval import expression_failed


def stage_parts(
    plans: Plans, df: DataFrame, attempt: int, comment: str, *, rows: bool = True, care: Care = Care.QUICK
) -> Staged:
    """Stage a prepared DataFrame's rows and dead letters from the executors.

    :param attempt: number of the attempt within this driver's epoch; no two are the same.
    :param comment: the staging tables' comment, for whoever finds them.
    :param rows: False when only dead letters and counts are looked for.
    """
    role = plans.session.role
    staging = create(plans.ledger, plans.target if rows else None, plans.rule, attempt, comment, role)
    reach("staged.after_create")
    task = staged_task(plans.staged(staging, care=care))
    try:
        reports = read_reports(df.mapInArrow(task, REPORT_SCHEMA).collect())
        for report in reports:
            raise_for(report)
    except Exception as error:
        # The batch is done again at once, row by row; what any other failure leaves, the next run sweeps.
        if isinstance(error, RowsRefusedError | DeadLetterRefusedError) or expression_failed(error):
            drop(plans.ledger, staging, role)
        raise
    return Staged.of(staging, reports)


def stage_spool(plans: Plans, letters: LetterSpool, attempt: int, comment: str) -> Staged:
    """Stage dead letters that the driver found, in a session of its own, so that executors can read them.

    :param attempt: number of the attempt within this driver's epoch; no two are the same.
    """
    staging = create(plans.ledger, None, plans.rule, attempt, comment, plans.session.role)
    report = PartReport(part=0, attempt=0, refused=letters.count)
    with transaction(plans.session) as cursor:
        copy_rows(cursor, staging.schema, staging.letters, letter_batches(letters, report))
        cursor.run("COMMIT")
    return Staged.of(staging, [report])


def merge_staged(
    plans: Plans,
    staged: Staged,
    looked: Looked,
    event: dict[str, Any],
    *,
    care: Care,
    publish: Publish | None = None,
) -> PartReport:
    """Merge and commit what the winning attempts staged; errors of PostgreSQL come back in the report.

    :param publish: where dead letters are written elsewhere as well.
    :raises BooksDoNotBalanceError: the staging table lacks rows.
    """
    total = PartReport(part=0, attempt=0, tally=staged.tally, refused=staged.refused)
    letters = LetterSpool(fail_fast=plans.fail_fast)
    started = monotonic()
    try:
        with transaction(plans.session) as cursor:
            plan = plans.commit(looked.record, event, "staged", staged, looked.letters)
            if not begin_batch(cursor, plan):
                cursor.run("ROLLBACK")
                total.state = parts.ALREADY_THERE
                return total
            reach("staged.before_merge")
            if plans.rule.mode is WriteMode.OVERWRITE:
                empty(cursor, *plans.emptying())
            if staged.reports:
                refused = RefusedRows(letters, plan.limit) if care >= Care.MERGE else None
                _merge_rows(cursor, plans, staged, total, refused, refuses=care is Care.EACH)
            commit(cursor, plan, total, letters, looked.books_of(total), started, publish)
    except Error as error:
        open_question = total.state == parts.UNKNOWN and not sqlstate(error)
        total.fail(sqlstate(error), str(error))
        total.state = parts.UNKNOWN if open_question else total.state
    finally:
        letters.close()
    return total


def _merge_rows(
    cursor: Cursor, plans: Plans, staged: Staged, total: PartReport, refused: RefusedRows | None, *, refuses: bool
) -> None:
    found = int(cursor.scalar(plans.count_staged(staged.staging, staged.reports)))
    if found != staged.written:
        # An unlogged table is empty after a crash of the server: then the batch is done again, not the merge.
        raise BooksDoNotBalanceError(
            "The staging table does not hold what the tasks staged",
            found=f"{found} rows",
            expected=f"{staged.written} rows",
            cure="Nothing was committed; the batch is done again (did the server restart?)",
        )
    total.doing = parts.MERGE
    merger = Merger(cursor, plans.merge_winners(staged.staging, staged.reports), refused, refuses=refuses)
    total.written, total.deduplicated = merge_rows(merger, found)
    total.doing = ""
    total.refused += refused.count if refused else 0
