"""How one committed micro-batch is done again: its range is read anew, and written by the pipeline's own sink."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_jobs.contracts.config import WriteMode, WriteStrategy
from spark_jobs.contracts.errors import BooksDoNotBalanceError, EtlError
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.reprocess_batches import ReprocessRequest
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.contracts.tracker.reprocess_batches import CommittedBatch
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.reprocess_rules import require_no_followers
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks.batch_column import with_batch
from spark_jobs.sinks.batch_result import BatchRows, Looked, Written
from spark_jobs.sinks.committing import stateless_books
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merge_sql import merge_rule
from spark_jobs.sinks.plans import dead_letter_limit, writing_session
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.reprocess_plans import ReprocessPlans
from spark_jobs.sinks.sorting import Tally
from spark_jobs.sinks.strategy import Choice, choose
from spark_jobs.sources.base import OffsetRange


def source_range(batch: CommittedBatch) -> OffsetRange:
    """Return what the micro-batch had read."""
    return OffsetRange(batch.identity.start_offsets, batch.identity.end_offsets, batch.files)


@dataclass(frozen=True, slots=True)
class BatchAgainWriter:
    """Writes micro-batches of one reprocess again, each in one transaction."""

    spark: SparkSession
    flow: Flow
    ledger: Ledger
    plans: ReprocessPlans
    sink: PostgresSink
    """One for all: no two of its attempts have the same number."""
    dry_run: bool

    @classmethod
    def open(cls, spark: SparkSession, flow: Flow, ledger: Ledger, wanted: ReprocessRequest) -> BatchAgainWriter:
        """Look at the target.

        :raises TargetMismatchError: the rows do not fit it, or may not be removed there.
        :raises ReprocessRefusedError: rows of other tables would go with those that are removed.
        """
        target = TargetTable(flow, ledger, replaces=True).open()
        load, handling = flow.config.load, flow.config.error_handling
        if load.write_mode is WriteMode.APPEND:
            require_no_followers(ledger, target)
        plans = ReprocessPlans(
            ledger,
            target,
            merge_rule(load),
            writing_session(ledger, load.role),
            dead_letter_limit(load),
            sorts=flow.sorts,
            fail_fast=handling is not None and handling.fail_fast,
            pipeline_id=wanted.pipeline_id,
            reprocess_id=wanted.reprocess_id,
            batch_column=load.batch_column,
        )
        sink = PostgresSink(plans, spark.sparkContext.defaultParallelism, load.write_parallelism)
        return cls(spark, flow, ledger, plans, sink, wanted.dry_run)

    def write(self, batch: CommittedBatch, *, rehearsal: bool = False) -> Written:
        """Write the micro-batch again, with its ledger row.

        :param rehearsal: whether it is rolled back at its end, as in a dry run.

        Its state is ``already_there`` where another attempt at the task has committed it, and nobody heard of it.

        :raises ReprocessRefusedError: nothing of it was written.
        """
        offsets = source_range(batch)
        self.plans.under_way.source_rows = batch.source_rows
        self.plans.under_way.dry_run = self.dry_run or rehearsal
        choice = self._choose(offsets)
        record = self._record(batch, choice)

        def rows(careful: bool) -> DataFrame:
            flow = self.flow.carefully if careful else self.flow
            return with_batch(flow.batch_again(offsets), self.plans.batch_column, batch.identity)

        try:
            return self._write(choice, rows, record)
        except EtlError:
            raise
        except Exception:
            require_ready_executors(self.spark)
            raise

    def _write(self, choice: Choice, rows: BatchRows, record: BatchRecord) -> Written:
        event = self._event(record)
        if choice.strategy is WriteStrategy.SINGLE:
            return self.sink.write_in_one_task(rows, record, event, several_read=choice.several_read)

        def books(counted: Tally | None) -> Looked:
            if counted is None:
                raise BooksDoNotBalanceError("The rows of a stateless batch were not counted")
            return Looked(record, stateless_books)

        return self.sink.write_staged(rows, record, event, books, again=True)

    def _choose(self, offsets: OffsetRange) -> Choice:
        forced = self.flow.config.load.write_strategy
        if forced is WriteStrategy.TWO_PHASE:
            forced = WriteStrategy.AUTO
        # As rows that are merged: what goes and what comes is one transaction.
        means = replace(self.sink.means(), write_mode=WriteMode.UPSERT)
        return choose(forced, self.flow.source.size(offsets), means)

    def _record(self, batch: CommittedBatch, choice: Choice) -> BatchRecord:
        return BatchRecord(
            identity=batch.identity,
            run_id=self.ledger.run_id,
            epoch=self.ledger.epoch,
            checkpoint_location=batch.checkpoint_location,
            books=Books.empty(),
            duration_ms=0,
            strategy=choice.strategy.value,
            strategy_reason=choice.reason,
            files=batch.files,
        )

    def _event(self, record: BatchRecord) -> dict[str, Any]:
        event = BatchCommitted(
            pipeline_id=self.ledger.pipeline_id,
            run_id=self.ledger.run_id,
            query_id=record.identity.query_id,
            batch_id=record.identity.batch_id,
            epoch=self.ledger.epoch,
            rows=0,
        )
        return event.model_dump(mode="json")
