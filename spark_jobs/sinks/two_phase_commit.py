"""Strategy ``two_phase``, driver side: sweep, have the parts prepared, decide, commit them, finish."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from psycopg import errors, sql
from pyspark.sql import DataFrame

from spark_jobs.contracts.errors import DatabaseUnreachableError, EtlError, TransientError
from spark_jobs.contracts.tracker import decisions, recovery, statements
from spark_jobs.contracts.tracker.connect import classified, raw, set_local_role
from spark_jobs.contracts.tracker.decisions import Winner
from spark_jobs.contracts.tracker.part_names import LETTERS_PART, part_names
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.faults import reach
from spark_jobs.logs.events import log_event
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_result import Looked
from spark_jobs.sinks.care import Care
from spark_jobs.sinks.committing import check_limits, completed, event_text, require_letters, stateless_books
from spark_jobs.sinks.parts import REPORT_SCHEMA, PartReport
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.reports import cannot_prepare, raise_for, read_reports
from spark_jobs.sinks.staging import Staged
from spark_jobs.sinks.two_phase import two_phase_task

log = logging.getLogger("etl.batch")


@dataclass(slots=True)
class TwoPhaseCommit:
    """One attempt at one batch. Nothing of a failed attempt is ever committed; its parts are swept.

    :param attempt: number of the attempt within this driver's epoch; no two are the same.
    """

    plans: Plans
    attempt: int

    def sweep(self) -> None:
        """Roll back what earlier attempts of this driver left prepared: it holds locks, and slots."""
        recovery.sweep_own(self._conn(), self.plans.ledger.right, role=self.plans.session.role)

    @contextmanager
    def swept_on_failure(self) -> Iterator[None]:
        """Roll back what was prepared in the block, unless it was decided, when the block fails."""
        try:
            yield
        except Exception:
            with suppress(EtlError):
                self.sweep()
            raise

    def prepare_parts(
        self, df: DataFrame, record: BatchRecord, event: dict[str, Any], *, care: Care
    ) -> list[PartReport]:
        """Run the tasks; return the winners' reports, or raise for the first that failed."""
        plan = self.plans.two_phase(record, event, self.attempt, care=care)
        reports = read_reports(df.mapInArrow(two_phase_task(plan), REPORT_SCHEMA).collect())
        for report in reports:
            raise_for(report)
        return reports

    def commit(
        self,
        looked: Looked,
        reports: Sequence[PartReport],
        total: PartReport,
        event: dict[str, Any],
        *,
        stateless: bool,
    ) -> None:
        """Decide, commit the parts and finish. Sets the total's state.

        :param stateless: whether the parts' rows are the source's, or results of an aggregation.
        :raises FencedError: a newer run has taken over; if it was decided before, that run finishes the batch.
        """
        started = monotonic()
        books = looked.books_of(total)
        check_limits(self.plans.limit, books)
        record = completed(looked.record, books, total, started)
        shares = stateless_books if stateless else _results
        winners = [Winner(report.name, report.written, shares(report)) for report in reports if report.name]
        if looked.letters is not None and looked.letters.letters:
            winners.append(self._prepare_letters(looked.letters, record))
        reach("two_phase.before_decision")
        self._decide(record, event_text(event, books), winners)
        reach("two_phase.after_decision")
        self._finish(record)
        total.state = parts.COMMITTED
        reach("two_phase.after_finish")

    def _decide(self, record: BatchRecord, event: str, winners: list[Winner]) -> None:
        ledger = self.plans.ledger
        try:
            decisions.decide(self._conn(), ledger.right, record, event, winners)
        except DatabaseUnreachableError as error:
            # The answer may have been lost, not the decision.
            log_event(
                log, logging.WARNING, "decision_without_answer", batch=record.identity.batch_id, settling="ledger"
            )
            if ledger.settle_unknown(record.identity) == "absent":
                raise TransientError(
                    f"The connection was lost at the decision about micro-batch {record.identity.batch_id}",
                    found=error.found,
                    expected="the decision in the ledger; it is not there, so nothing was written",
                    cure="Run the pipeline again",
                ) from error

    def _finish(self, record: BatchRecord) -> None:
        ledger, role = self.plans.ledger, self.plans.session.role
        conn = self._conn()
        for batch in decisions.decided(conn, ledger.schema, ledger.pipeline_id):
            decisions.commit_parts(conn, batch, role)
            reach("two_phase.before_finish")
            decisions.finish(conn, ledger.right, batch)
        # Speculative and repeated attempts that lost, and did not find out by themselves.
        self.sweep()
        log_event(log, logging.DEBUG, "two_phase_finished", batch=record.identity.batch_id)

    def _prepare_letters(self, letters: Staged, record: BatchRecord) -> Winner:
        # The staging table is unlogged: what is decided must not depend on it.
        ledger, session, key = self.plans.ledger, self.plans.session, record.identity
        names = part_names(key.pipeline_id, ledger.schema, key.query_id, key.batch_id, ledger.epoch, self.attempt)
        name = names.of(LETTERS_PART, 0)
        conn = self._conn()
        statement = self.plans.letters_from(letters, record)
        with classified("Preparing the dead letters of the micro-batch"):
            conn.execute("BEGIN")
            try:
                raw(
                    conn,
                    statements.begin_settings(),
                    session.application_name,
                    session.lock_timeout,
                    statements.DRIVER_IDLE_TIMEOUT,
                )
                set_local_role(conn, session.role)
                found = raw(conn, statement)[0][0]
                require_letters(int(found), letters.letters)
                raw(conn, statements.insert_part(ledger.ident), name, *key.key, "0")
                _prepare(conn, name)
            except BaseException:
                with suppress(errors.Error):
                    conn.execute("ROLLBACK")
                raise
        count = letters.letters
        return Winner(name, 0, Books(source=count, passed=0, dead_lettered=count, sink=0, written=0))

    def _conn(self) -> Any:
        return self.plans.ledger.connection()


def _prepare(conn: Any, name: str) -> None:
    reach("two_phase.before_letters_prepare")
    try:
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
    except errors.Error as error:
        refused = cannot_prepare(error.sqlstate or "", "The transaction of the dead letters", str(error))
        if refused is None:
            raise
        raise refused from error
    reach("two_phase.after_letters_prepare")


def _results(report: PartReport) -> Books:
    # What the source gave is not known part by part.
    return Books(
        source=0, passed=0, sink=report.tally.passed, written=report.written, write_dead_lettered=report.refused
    )
