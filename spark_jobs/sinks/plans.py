"""Plans of a batch's write, rendered on the driver: all that a task needs, and nothing that it could ask for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import sql
from pyspark.sql import Column, DataFrame

from spark_jobs.contracts.config import WriteMode
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.tracker.connect import KEEPALIVE
from spark_jobs.contracts.tracker.part_names import part_names
from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.rows import LETTER, OUTCOME, RAW, ROW, SOURCE, origin_columns
from spark_jobs.sinks import merging
from spark_jobs.sinks.applying import MergeText
from spark_jobs.sinks.care import Care
from spark_jobs.sinks.committing import CommitPlan
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.dead_letter_rows import counted_letters_from, insert_letters_from_json
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.letter_ids import LetterSet
from spark_jobs.sinks.merge_sql import MergeRule
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.sieve_text import sieve_text
from spark_jobs.sinks.single import TEMPORARY, SinglePlan
from spark_jobs.sinks.staged import StagedPlan
from spark_jobs.sinks.staging import Staged, Staging
from spark_jobs.sinks.staging_table import create_staging, marks
from spark_jobs.sinks.target import Target, column_of
from spark_jobs.sinks.two_phase import TwoPhasePlan
from spark_jobs.sinks.writing import RowsPlan

_LOCK_TIMEOUT = "60s"
# Between two COPYs a task waits for Spark, which may take its time: a day of rows that are all filtered, say. From the
# ledger row on it waits for nothing, and is bounded (statements.bound_the_commit).
_IDLE_TIMEOUT = "0"


@dataclass(frozen=True, slots=True)
class Plans:
    """Makes the plans of one run's batches.

    :param sorts: whether rows may carry another outcome than having passed.
    :param fail_fast: whether the first dead letter ends a batch.
    :param elsewhere: whether dead letters are written elsewhere as well, before the batch commits.
    """

    ledger: Ledger
    target: Target
    rule: MergeRule
    session: Session
    limit: Limit
    sorts: bool = True
    fail_fast: bool = False
    elsewhere: bool = False
    _selects: dict[tuple[bool, bool], list[Column]] = field(default_factory=dict, compare=False)

    @property
    def merges(self) -> bool:
        """Whether even a single transaction writes through a staging table."""
        # COPY does not tell how many rows a trigger let through; INSERT does.
        return self.rule.mode is WriteMode.UPSERT or self.target.has_insert_triggers or not self.target.direct

    @property
    def _table(self) -> tuple[str, str]:
        return str(self.target.table.schema), self.target.table.table

    def single(
        self,
        record: BatchRecord,
        event: dict[str, Any],
        *,
        care: Care,
        letters: Staged | None = None,
        by_driver: bool = False,
    ) -> SinglePlan:
        """Return the plan of one transaction.

        :param by_driver: whether it is the driver's, and not a task's.
        """
        conn = self.ledger.connection()
        overwrite = self.rule.mode is WriteMode.OVERWRITE
        plan = SinglePlan(
            session=self.session,
            rows=self._rows(*self._table, care, "single.in_copy"),
            commit=self.commit(record, event, "single", letters, hands_over=self.elsewhere and not by_driver),
            before=self.emptying() if overwrite else None,
        )
        if not self.merges:
            return plan
        staging = sql.Identifier(TEMPORARY)
        return SinglePlan(
            session=plan.session,
            rows=self._rows("pg_temp", TEMPORARY, care, "single.in_copy", staged="TEMP"),
            commit=plan.commit,
            before=plan.before,
            create_staging=(create_staging(staging, self.target, kind="TEMP", rule=self.rule).as_string(conn),),
            merge=self.merge(staging.as_string(conn)),
            merge_refuses=care is Care.EACH,
        )

    def staged(self, staging: Staging, *, care: Care) -> StagedPlan:
        """Return the plan of the tasks that fill a staging."""
        rows = None
        if staging.rows:
            rows = self._rows(staging.schema, staging.rows, care, "staged.in_copy", staged="UNLOGGED")
            if care is Care.QUICK:
                name = staging.identifier(staging.rows).as_string(self.ledger.connection())
                rows = replace(rows, look=merging.early_look(self.target, name, self.rule, self.ledger.connection()))
        return StagedPlan(self.session, staging.schema, rows, staging.letters, self.limit, self.fail_fast)

    def two_phase(self, record: BatchRecord, event: dict[str, Any], attempt: int, *, care: Care) -> TwoPhasePlan:
        """Return the plan of the tasks that prepare their parts.

        :param attempt: number of the attempt within this driver's epoch; no two are the same.
        """
        key = record.identity
        ledger = self.ledger
        return TwoPhasePlan(
            session=self.session,
            # A prepared transaction may not have used temporary tables.
            rows=self._rows(*self._table, care, "two_phase.in_copy", lasting=ledger.schema),
            commit=self.commit(record, event, "two_phase", hands_over=self.elsewhere),
            names=part_names(key.pipeline_id, ledger.schema, key.query_id, key.batch_id, ledger.epoch, attempt),
        )

    def commit(
        self, record: BatchRecord, event: dict[str, Any], where: str, *staged: Staged | None, hands_over: bool = False
    ) -> CommitPlan:
        """Return the plan of a transaction's end.

        :param staged: stagings whose dead letters belong to the batch.
        :param hands_over: whether a batch with dead letters is another transaction's to commit.
        """
        found = tuple(one for one in staged if one is not None and one.letters)
        return CommitPlan(
            tracker=self.ledger.ident,
            target=self.target.state,
            record=record,
            event=event,
            letters=insert_letters_from_json(self.ledger.ident),
            limit=self.limit,
            letters_from=tuple((self.letters_from(one, record), one.letters) for one in found),
            where=where,
            fail_fast=self.fail_fast,
            hands_over=hands_over,
        )

    def letter_set(self, staged: Staged, origin: int) -> LetterSet:
        """Return the dead letters of a staging as they are read for their copy elsewhere."""
        attempts = tuple(report.attempt for report in staged.reports)
        return LetterSet(staged.staging.identifier(staged.staging.letters), attempts, origin, staged.letters)

    def letters_from(self, staged: Staged, record: BatchRecord) -> str:
        """Return the statement that takes the dead letters from a staging."""
        staging = staged.staging
        return counted_letters_from(
            self.ledger.connection(),
            self.ledger.ident,
            staging.identifier(staging.letters),
            staged.reports,
            record.identity,
        )

    def emptying(self) -> tuple[str, str]:
        """Return the statement that deletes all rows of the target, and the question whether any is left."""
        return merging.empty(self.target, self.ledger.connection())

    def merge(self, table: str, winners: str = "true") -> MergeText:
        """Return the statements that bring the rows of a staging table into the target.

        :param table: quoted. :param winners: the condition for the rows that count.
        """
        return merging.merge(self.target, table, self.rule, self.ledger.connection(), winners=winners)

    def count_staged(self, staging: Staging, reports: tuple[PartReport, ...]) -> str:
        """Return the question how many rows the winning attempts staged, by what they left beside their letters."""
        name = staging.identifier(staging.letters).as_string(self.ledger.connection())
        winners = merging.of_attempts([report.attempt for report in reports])
        return f"SELECT coalesce(sum(_rows), 0)::bigint FROM {name} WHERE {winners}"  # noqa: S608 - rendered by psycopg.sql

    def merge_winners(self, staging: Staging, reports: tuple[PartReport, ...]) -> MergeText:
        """Return the statements that bring the winning attempts' rows into the target."""
        name = staging.identifier(staging.rows).as_string(self.ledger.connection())
        return self.merge(name, merging.of_attempts([report.attempt for report in reports]))

    def prepare(self, df: DataFrame, *, care: Care, staged: bool) -> DataFrame:
        """Return the rows as COPY must send them, and of the carried columns only what the writers need.

        All batches of a run have the same columns: what to select is found out with the first one.

        :param staged: whether the rows go to a staging table first.
        """
        way = bool(care), _keeps_origin(care, staged=staged)
        if way not in self._selects:
            self._selects[way] = self._select(df, *way)
        return df.select(*self._selects[way])

    def _select(self, df: DataFrame, careful: bool, keeps_origin: bool) -> list[Column]:
        types = {field.name: field.dataType for field in df.schema.fields}
        own = {column.name for column in self.target.columns}
        carried = []
        for name in types:
            if name in own or name in (ROW, RAW, SOURCE):
                continue
            # Columns that are the same in every row would cost as much as the data's. With care any row may fail.
            if name in (OUTCOME, LETTER) and not self.sorts and not careful:
                continue
            carried.append(column_of(name))
        if careful and SOURCE in types:
            carried += origin_columns(df.schema, as_text=keeps_origin)
        return [*self.target.sent(types), *carried]

    def _rows(
        self, schema: str, table: str, care: Care, point: str, *, staged: str = "", lasting: str | None = None
    ) -> RowsPlan:
        """Return where rows go.

        :param staged: the kind of the staging table, if it is one. :param lasting: where there may be no temporary
            tables, the schema for what is made and dropped within the transaction.
        """
        columns = [(column.name, column.type.base) for column in self.target.columns]
        if staged and self.rule.delete_marker:
            columns.append((self.rule.delete_marker, "boolean"))
        keep_source = _keeps_origin(care, staged=bool(staged))
        sieve = None
        if care and (staged or not self.target.has_rules):
            into = sql.Identifier(schema, table)
            beside = marks(staged, self.rule) if staged else []
            demanded = None if staged else self.target.demands
            conn = self.ledger.connection()
            sieve = sieve_text(conn, into, self.target.columns, self.target.checks, beside, demanded, lasting)
        return RowsPlan(schema, table, tuple(columns), bool(care), keep_source, point, sieve)


def _keeps_origin(care: Care, *, staged: bool) -> bool:
    """Tell whether each row's origin is to be with it in the table: a merge may refuse it."""
    return staged and care >= Care.MERGE


def writing_session(ledger: Ledger, role: str | None) -> Session:
    """Return how executors and driver open the transactions that write."""
    return Session(
        uri=ledger.database.uri(application_name=ledger.application_name, defaults=KEEPALIVE),
        application_name=ledger.application_name,
        lock_timeout=_LOCK_TIMEOUT,
        idle_timeout=_IDLE_TIMEOUT,
        role=role,
    )


def dead_letter_limit(load: Load) -> Limit:
    """Return how many dead letters a batch may have."""
    if load.max_dead_letter_fraction is None:
        return Limit(fraction=0.5, least=100)
    return Limit(load.max_dead_letter_fraction)
