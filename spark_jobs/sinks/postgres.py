"""The PostgreSQL sink, driver side: has a batch written by the executors, and commits it.

Commit point of ``single`` and ``staged``: one transaction that holds the target's rows, the dead letters, the ledger
row with balanced books and the notification, and that locked the fence's row last. Of ``two_phase``: the decision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pyspark.sql import DataFrame

from spark_jobs.contracts.config import WriteStrategy
from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.faults import reach
from spark_jobs.logs.events import log_event
from spark_jobs.sinks import parts
from spark_jobs.sinks.ability import two_phase_ability
from spark_jobs.sinks.attempts import Attempts
from spark_jobs.sinks.batch_result import BatchRows, Looked, SecondLook, Written
from spark_jobs.sinks.care import Care
from spark_jobs.sinks.committing import CommitPlan, Publish, stateless_books
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.letter_copy import LettersBatch
from spark_jobs.sinks.parts import REPORT_SCHEMA, PartReport
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.publishing import LetterPublisher
from spark_jobs.sinks.reports import raise_for, read_reports
from spark_jobs.sinks.single import single_task, write_single
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.staged_commit import merge_staged, stage_parts, stage_spool
from spark_jobs.sinks.staging import Staged, drop
from spark_jobs.sinks.strategy import Choice, Means
from spark_jobs.sinks.two_phase_commit import TwoPhaseCommit

log = logging.getLogger("etl.batch")


class PostgresSink:
    """Writes one pipeline's batches into one table.

    :param parallelism: most tasks that write at once, unless ``asked`` (``load.writeParallelism``) says otherwise.
    :param publisher: writes dead letters elsewhere as well.
    """

    def __init__(
        self, plans: Plans, parallelism: int, asked: int | None = None, publisher: LetterPublisher | None = None
    ) -> None:
        self._plans = plans
        self._ledger = plans.ledger
        self._parallelism = asked or parallelism
        self._asked = asked
        self._attempt = 0
        self._attempts = Attempts(publishes=publisher is not None)
        self._publisher = publisher

    @property
    def role(self) -> str | None:
        """The role that writes, where it is not the connection's own."""
        return self._plans.session.role

    def means(self) -> Means:
        """Return what a batch can be written with now."""
        ability = two_phase_ability(self._ledger.connection(), self._plans.target, self._ledger.schema, self.role)
        return Means(self._plans.rule.mode, ability, self._parallelism, self._asked)

    # -- dead letters elsewhere ------------------------------------------------------------------------------------

    def begin(self, batch: LettersBatch) -> None:
        """Say which batch comes now; see :meth:`LetterPublisher.begin`."""
        if self._publisher is not None:
            self._publisher.begin(batch)

    def committed(self, books: Books) -> None:
        """Say that the batch is committed."""
        if self._publisher is not None:
            self._publisher.committed(letters=bool(books.dead_lettered or books.write_dead_lettered))

    def fitting(self, choice: Choice, *, stateful: bool) -> Choice:
        """Return the choice, or ``staged`` where letters are to be expected: there the driver can publish them."""
        if self._publisher is None:
            return choice
        if stateful and choice.strategy is WriteStrategy.TWO_PHASE:
            # A part may refuse results, and an aggregation is evaluated once only.
            return Choice(WriteStrategy.STAGED, f"{choice.reason}; staged, as dead letters are published")
        if not stateful and self._publisher.expected and choice.strategy is not WriteStrategy.STAGED:
            return Choice(WriteStrategy.STAGED, f"{choice.reason}; staged, as the batch before had dead letters")
        return choice

    @contextmanager
    def _publishing(self, record: BatchRecord, *stagings: Staged | None) -> Iterator[Publish | None]:
        """Give what publishes the letters of these stagings and those that the driver finds."""
        if self._publisher is None:
            yield None
            return
        publisher, spooled = self._publisher, list[Staged]()

        def publish(cursor: Cursor, plan: CommitPlan, letters: LetterSpool) -> CommitPlan:
            if letters.count:
                self._attempt += 1
                spooled.append(stage_spool(self._plans, letters, self._attempt, _name(record)))
                letters.clear()
            found = [
                self._plans.letter_set(staged, origin)
                for origin, staged in enumerate((*stagings, *spooled))
                if staged is not None and staged.letters
            ]
            return replace(plan, letters_from=publisher.publish(cursor, found)) if found else plan

        try:
            yield publish
        finally:
            for staged in spooled:
                self.discard(staged)

    # -- single ----------------------------------------------------------------------------------------------------

    def write_in_one_task(
        self, rows: BatchRows, record: BatchRecord, event: dict[str, Any], *, several_read: bool = False
    ) -> Written:
        """Write a stateless batch in one task and one transaction.

        :param several_read: whether other tasks read it, and hand their rows over by a shuffle.
        """

        def write(care: Care) -> PartReport:
            prepared = self._plans.prepare(rows(bool(care)), care=care, staged=self._plans.merges)
            narrow = prepared.repartition(1) if several_read else prepared.coalesce(1)
            return self._one_task(narrow, record, event, care)

        report = self._attempts.write(write, record, in_tasks=True)
        return Written(report.state, stateless_books(report), report.tally.event_time_max, report.message)

    def _one_task(self, narrow: DataFrame, record: BatchRecord, event: dict[str, Any], care: Care) -> PartReport:
        plan = self._plans.single(record, event, care=care)
        rows = narrow.mapInArrow(single_task(plan), REPORT_SCHEMA).collect()
        return self._settled(read_reports(rows)[0], record)

    def write_handed_over(
        self, df: DataFrame, record: BatchRecord, event: dict[str, Any], second_look: SecondLook
    ) -> Written:
        """Write the bounded result of an aggregation from the driver, in one transaction."""
        table = self._plans.prepare(df, care=Care.QUICK, staged=False).toArrow()
        looked = second_look(None)

        def write(care: Care) -> PartReport:
            plan = self._plans.single(looked.record, event, care=care, letters=looked.letters, by_driver=True)
            with self._publishing(record, None, looked.letters) as publish:
                report = write_single(plan, table.to_batches(), looked.books_of, publish=publish)
            return self._settled(report, record)

        report = self._written(write, record, [looked])
        return Written(report.state, looked.books_of(report))

    def _written(
        self,
        write: Callable[[Care], PartReport],
        record: BatchRecord,
        looks: Sequence[Looked],
        *,
        again: bool = True,
        in_tasks: bool = False,
    ) -> PartReport:
        """Write, and drop what the looks at the batch have staged, however it ends.

        :param again: whether the batch may be evaluated a second time. If not, it is written with care at once.
        """
        try:
            return self._attempts.write(write, record, in_tasks=in_tasks) if again else write(Care.MERGE)
        finally:
            for looked in looks:
                self.discard(looked.letters)

    def _settled(self, report: PartReport, record: BatchRecord) -> PartReport:
        if report.state == parts.UNKNOWN:
            log_event(log, logging.WARNING, "commit_without_answer", batch=record.identity.batch_id, settling="ledger")
            if self._ledger.settle_unknown(record.identity) == "committed":
                report.state, report.message = parts.COMMITTED, ""
                return report
            raise TransientError(
                f"The connection was lost at the commit of micro-batch {record.identity.batch_id}",
                found=report.message,
                expected="the batch in the ledger; it is not there, so nothing was written",
                cure="Run the pipeline again",
            )
        raise_for(report)
        return report

    # -- staged ----------------------------------------------------------------------------------------------------

    def stage(self, df: DataFrame, identity_text: str, *, rows: bool, care: Care = Care.QUICK) -> Staged:
        """Stage a prepared DataFrame's rows and dead letters from the executors.

        :param rows: False when only dead letters and counts are looked for.
        """
        self._attempt += 1
        narrow = df.coalesce(self._parallelism)
        return stage_parts(self._plans, narrow, self._attempt, identity_text, rows=rows, care=care)

    def write_staged(
        self, rows: BatchRows, record: BatchRecord, event: dict[str, Any], second_look: SecondLook, *, again: bool
    ) -> Written:
        """Stage from the executors, then merge and commit in one transaction.

        :param again: whether the batch may be evaluated a second time. If not, it is written with care at once.
        """
        last: list[Looked] = []

        def write(care: Care) -> PartReport:
            prepared = self._plans.prepare(rows(bool(care)), care=care, staged=True)
            staged = self.stage(prepared, _name(record), rows=True, care=care)
            try:
                last.append(second_look(staged.tally))
                with self._publishing(record, staged, last[-1].letters) as publish:
                    report = merge_staged(self._plans, staged, last[-1], event, care=care, publish=publish)
                return self._settled(report, record)
            finally:
                self.discard(staged)

        report = self._written(write, record, last, again=again)
        reach("staged.after_drop")
        return Written(report.state, last[-1].books_of(report), report.tally.event_time_max)

    def discard(self, staged: Staged | None) -> None:
        """Drop the tables of a staging, if there is one."""
        if staged is not None:
            drop(self._ledger, staged.staging, self.role)

    # -- two_phase -------------------------------------------------------------------------------------------------

    def write_two_phase(
        self,
        rows: BatchRows,
        record: BatchRecord,
        event: dict[str, Any],
        second_look: SecondLook,
        *,
        again: bool,
        most_parts: int,
    ) -> Written:
        """Have every part prepared by its task, decide, and commit them.

        :param again: whether the batch may be evaluated a second time. If not, it is written with care at once.
        :param most_parts: how many parts there may be.
        """
        last: list[Looked] = []

        def write(care: Care) -> PartReport:
            self._attempt += 1
            two_phase = TwoPhaseCommit(self._plans, self._attempt)
            two_phase.sweep()
            prepared = self._plans.prepare(rows(bool(care)), care=care, staged=False)
            with two_phase.swept_on_failure():
                reports = two_phase.prepare_parts(prepared.coalesce(most_parts), record, event, care=care)
                total = PartReport.total(reports)
                last.append(second_look(total.tally))
                two_phase.commit(last[-1], reports, total, event, stateless=again)
            return total

        report = self._written(write, record, last, again=again, in_tasks=True)
        return Written(report.state, last[-1].books_of(report), report.tally.event_time_max)


def _name(record: BatchRecord) -> str:
    return f"{record.identity.query_id}:{record.identity.batch_id}"
