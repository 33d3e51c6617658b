"""The PostgreSQL sink, driver side: plans a batch's write, hands it to the executors and commits it.

Commit point of every strategy: one transaction that holds the target's rows, the dead letters, the ledger row with
balanced books and the notification, and that locked the epoch's row last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from pyspark.sql import DataFrame

from spark_jobs.contracts.config import WriteMode
from spark_jobs.contracts.errors import (
    BooksDoNotBalanceError,
    EtlError,
    FencedError,
    LedgerConflictError,
    RowsSuppressedError,
    TransientError,
)
from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.connect import classify_state, raw
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.sinks import merging, parts
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.ledger import Ledger, lost
from spark_jobs.sinks.parts import REPORT_SCHEMA, PartReport
from spark_jobs.sinks.single import (
    BooksOf,
    SinglePlan,
    require_all_letters,
    require_all_written,
    single_task,
    stateless_books,
    write_single,
)
from spark_jobs.sinks.sorting import Tally
from spark_jobs.sinks.staged import StagedPlan, staged_task
from spark_jobs.sinks.staging import Staged, create, drop
from spark_jobs.sinks.target import Target

log = logging.getLogger(__name__)

_LOCK_TIMEOUT = "60s"
_IDLE_TIMEOUT = "60s"
_TEMPORARY = "etl_stage"
# What a task found out by itself comes back by its name, in the place of the SQLSTATE.
_FROM_TASKS: tuple[type[EtlError], ...] = (
    BooksDoNotBalanceError,
    FencedError,
    LedgerConflictError,
    RowsSuppressedError,
)
_BY_NAME = {kind.__name__: kind for kind in _FROM_TASKS}


@dataclass(frozen=True, slots=True)
class Looked:
    """What a batch's record and books are, once its rows were evaluated.

    :param letters: dead letters that a second look staged; None when it was not needed.
    """

    record: BatchRecord
    books_of: BooksOf
    letters: Staged | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """How a batch's write ended: ``state`` is ``committed`` or ``already_there``."""

    state: str
    books: Books


SecondLook = Callable[[Staged | None], Looked]
"""Asked once the batch's one action has run, with what was staged (None for a handed-over batch)."""


class PostgresSink:
    """Writes one pipeline's batches into one table."""

    def __init__(self, ledger: Ledger, target: Target, write_mode: WriteMode, keys: Sequence[str]) -> None:
        self._ledger = ledger
        self._target = target
        self._mode = write_mode
        self._keys = tuple(keys)
        self._session = Session(
            uri=ledger.database.uri(application_name=ledger.application_name),
            application_name=ledger.application_name,
            lock_timeout=_LOCK_TIMEOUT,
            idle_timeout=_IDLE_TIMEOUT,
        )
        self._attempt = 0

    # -- single ----------------------------------------------------------------------------------------------------

    def write_in_one_task(self, df: DataFrame, record: BatchRecord, event: dict[str, Any]) -> Written:
        """Write a stateless batch in one task and one transaction."""
        plan = self._single_plan(record, event)
        prepared = self._target.prepare(df)
        rows = prepared.coalesce(1).mapInArrow(single_task(plan), REPORT_SCHEMA).collect()
        report = self._settled(PartReport.read(row.asDict() for row in rows)[0], record)
        return Written(report.state, stateless_books(report))

    def write_handed_over(
        self, df: DataFrame, record: BatchRecord, event: dict[str, Any], second_look: SecondLook
    ) -> Written:
        """Write the bounded result of an aggregation from the driver, in one transaction."""
        table = self._target.prepare(df).toArrow()
        looked = second_look(None)
        plan = self._single_plan(looked.record, event, letters=looked.letters)
        report = write_single(plan, table.to_batches(), looked.books_of)
        report = self._settled(report, record)
        self._drop(looked.letters)
        return Written(report.state, looked.books_of(report))

    def _single_plan(self, record: BatchRecord, event: dict[str, Any], letters: Staged | None = None) -> SinglePlan:
        staging = sql.Identifier(_TEMPORARY)
        upsert = self._mode is WriteMode.UPSERT
        conn = self._ledger.connection()
        plan = SinglePlan(
            session=self._session,
            tracker=self._ledger.ident,
            record=record,
            event=event,
            schema=str(self._target.table.schema),
            table=self._target.table.table,
            columns=tuple(column.name for column in self._target.columns),
            letters=merging.insert_letters_from_json(self._ledger.ident),
            before=merging.empty(self._target).as_string(conn) if self._mode is WriteMode.OVERWRITE else "",
            letters_from=self._counted_letters(letters, record) if letters else "",
            letters_expected=letters.tally.dead_lettered if letters else 0,
        )
        # COPY does not tell how many rows a trigger let through; INSERT does.
        if not upsert and not self._target.has_insert_triggers:
            return plan
        return replace(
            plan,
            create_staging=merging.create_staging(staging, self._target, kind="TEMP").as_string(conn),
            staging=_TEMPORARY,
            merge=merging.counted(self._merge_from(staging)).as_string(conn),
            drops_same_keys=upsert,
        )

    def _merge_from(self, source: sql.Composable) -> sql.Composed:
        if self._mode is WriteMode.UPSERT:
            return merging.upsert_from(self._target, source, self._keys)
        return merging.insert_from(self._target, source)

    def _settled(self, report: PartReport, record: BatchRecord) -> PartReport:
        if report.state == parts.UNKNOWN:
            log.warning("event=commit_without_answer batch=%d settling=ledger", record.identity.batch_id)
            if self._ledger.settle_unknown(record.identity):
                report.state = parts.COMMITTED
                return report
            raise TransientError(
                f"The connection was lost at the commit of micro-batch {record.identity.batch_id}",
                found=report.message,
                expected="the batch in the ledger; it is not there, so nothing was written",
                cure="Run the pipeline again",
            )
        _raise_for(report)
        return report

    # -- staged ----------------------------------------------------------------------------------------------------

    def stage(self, df: DataFrame, identity_text: str, *, rows: bool) -> Staged:
        """Stage a DataFrame's rows and dead letters from the executors.

        :param rows: False when only dead letters and counts are looked for.
        """
        self._attempt += 1
        staging = create(self._ledger, self._target if rows else None, self._attempt, identity_text)
        plan = StagedPlan(
            session=self._session,
            schema=staging.schema,
            rows=staging.rows,
            letters=staging.letters,
            columns=tuple(column.name for column in self._target.columns) if rows else (),
        )
        collected = df.mapInArrow(staged_task(plan), REPORT_SCHEMA).collect()
        reports = PartReport.read(row.asDict() for row in collected)
        for report in reports:
            _raise_for(report)
        tally = Tally()
        for report in reports:
            tally.add(report.tally)
        return Staged(staging, tuple(reports), tally)

    def write_staged(
        self, df: DataFrame, record: BatchRecord, event: dict[str, Any], second_look: SecondLook
    ) -> Written:
        """Stage from the executors, then merge and commit in one transaction."""
        name = f"{record.identity.query_id}:{record.identity.batch_id}"
        staged = self.stage(self._target.prepare(df), name, rows=True)
        looked = second_look(staged)
        total = PartReport(part=0, attempt=0, tally=staged.tally)
        try:
            self._merge(staged, looked, event, total)
        except psycopg.OperationalError as error:
            if not lost(error):
                raise
            total.state, total.message = parts.UNKNOWN, str(error)
        total = self._settled(total, record)
        self._drop(staged)
        self._drop(looked.letters)
        return Written(total.state, looked.books_of(total))

    def _merge(self, staged: Staged, looked: Looked, event: dict[str, Any], total: PartReport) -> None:
        conn = self._ledger.connection()
        with conn.transaction():
            raw(conn, statements.begin_settings(), self._session.application_name, _LOCK_TIMEOUT, _IDLE_TIMEOUT)
            if self._ledger.is_committed(looked.record.identity):
                total.state = parts.ALREADY_THERE
                return
            self._merge_rows(conn, staged, total)
            for source in (staged, looked.letters):
                if source is not None and source.tally.dead_lettered:
                    self._merge_letters(conn, source, looked.record)
            record = replace(looked.record, books=looked.books_of(total))
            raw(conn, statements.insert_batch(self._ledger.ident), record.row_json())
            if record.files:
                raw(conn, statements.insert_files(self._ledger.ident), record.files_json())
            if record.gaps:
                raw(conn, statements.insert_gaps(self._ledger.ident), record.gaps_json())
            raw(conn, statements.notify(), _event(event, total))
            ledger = self._ledger
            check_fence(conn, ledger.schema, ledger.pipeline_id, ledger.run_id, ledger.epoch, lock=True)
        total.state = parts.COMMITTED

    def _merge_rows(self, conn: psycopg.Connection[Any], staged: Staged, total: PartReport) -> None:
        rows = staged.staging.identifier(staged.staging.rows)
        winners = merging.winners(rows)
        reported = sum(report.written for report in staged.reports)
        found = _count(conn, winners, staged.winners)
        if found != reported:
            # An unlogged table is empty after a crash of the server: then the batch is done again, not the merge.
            raise BooksDoNotBalanceError(
                "The staging table does not hold what the tasks staged",
                found=f"{found} rows",
                expected=f"{reported} rows",
                cure="Nothing was committed; the batch is done again (did the server restart?)",
            )
        if self._mode is WriteMode.OVERWRITE:
            conn.execute(merging.empty(self._target))
        upsert = self._mode is WriteMode.UPSERT
        total.written = conn.execute(self._merge_from(winners), staged.winners).rowcount
        total.deduplicated = found - total.written if upsert else 0
        require_all_written(found, total.written, upsert=upsert)

    def _merge_letters(self, conn: psycopg.Connection[Any], staged: Staged, record: BatchRecord) -> None:
        count = conn.execute(self._letters_statement(staged, record).encode()).rowcount
        require_all_letters(count, staged.tally.dead_lettered)

    def _counted_letters(self, staged: Staged, record: BatchRecord) -> str:
        return merging.counted_text(self._letters_statement(staged, record))

    def _letters_statement(self, staged: Staged, record: BatchRecord) -> str:
        conn = self._ledger.connection()
        attempts = sql.SQL(", ").join(
            sql.SQL("({}, {})").format(sql.Literal(report.part), sql.Literal(report.attempt))
            for report in staged.reports
        )
        source = sql.SQL("(SELECT envelope FROM {} WHERE (_part, _attempt) IN ({})) AS letter").format(
            staged.staging.identifier(staged.staging.letters), attempts
        )
        key = record.identity
        values = (key.pipeline_id, key.query_id, key.batch_id)
        literals = [sql.Literal(value).as_string(conn) for value in values]
        return merging.insert_letters(self._ledger.ident, source.as_string(conn), *literals)

    def _drop(self, staged: Staged | None) -> None:
        if staged is not None:
            drop(self._ledger, staged.staging)


def _count(conn: psycopg.Connection[Any], source: sql.Composable, parameters: dict[str, list[int]]) -> int:
    row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(source), parameters).fetchone()
    return int(row[0]) if row else 0


def _event(event: dict[str, Any], total: PartReport) -> str:
    return json.dumps({**event, "rows": total.written})


def _raise_for(report: PartReport) -> None:
    if report.state != parts.FAILED:
        return
    if report.sqlstate in _BY_NAME:
        told = json.loads(report.message)
        raise _BY_NAME[report.sqlstate](told["what"], found=told["found"], expected=told["expected"], cure=told["cure"])
    raise classify_state(report.sqlstate, f"Writing part {report.part} of the micro-batch", report.message)
