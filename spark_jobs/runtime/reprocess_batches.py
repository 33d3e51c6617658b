"""Committed micro-batches done again: their source ranges are read anew, and their rows take the place of the old ones.

Each batch is one transaction with its ledger row, under the reprocess's own pipeline id and the query and batch id that
it had. What is committed there is not done a second time, so a further attempt goes on where the one before stopped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_jobs.contracts.config import PipelineConfig, WriteMode, WriteStrategy, require_supported
from spark_jobs.contracts.errors import BooksDoNotBalanceError, EtlError, ReprocessRefusedError
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.reprocess_batches import BatchAgain, ReprocessRequest
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.contracts.tracker.reprocess_batches import (
    Chosen,
    CommittedBatch,
    batches_after,
    committed_batch,
    finish_reprocess,
    is_newest_query,
    open_reprocess,
)
from spark_jobs.faults import reach
from spark_jobs.logs import ids
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.heartbeat import Application, Heartbeat, beating
from spark_jobs.runtime.mdc import JvmIds, jvm_ids
from spark_jobs.runtime.reprocess_rules import needs_all_later, require_all_later, require_reprocessable
from spark_jobs.runtime.run import PipelineRun, SessionFactory
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_column import with_batch
from spark_jobs.sinks.batch_result import Looked, Written
from spark_jobs.sinks.committing import stateless_books
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merging import merge_rule
from spark_jobs.sinks.plans import dead_letter_limit, writing_session
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.reprocess_plans import ReprocessPlans
from spark_jobs.sinks.sorting import Tally
from spark_jobs.sinks.strategy import Choice, choose
from spark_jobs.sources.base import OffsetRange

log = logging.getLogger("etl.reprocess")

_LOOKED_AT_ONCE = 500
_NAMED = 5


@dataclass(frozen=True, slots=True)
class ReprocessRun(PipelineRun):
    """Carries out one registered reprocess; its end is recorded as any run's."""

    again: list[BatchAgain] = field(default_factory=list)
    """What was done in this process; in a dry run all that there is to tell."""

    def _run(self, session: SessionFactory, ledger: Ledger) -> None:
        wanted = self.request.reprocess
        if wanted is None:
            raise EtlError("The run's request names no micro-batches", cure="start it with `etl-pipeline reprocess`")
        config = PipelineConfig.from_json(self.request.config)
        require_supported(config)
        self._recover(ledger, config)
        self.again.clear()
        spark = session()
        self.stop.on_jvm_shutdown(spark)
        flow = Flow.build(spark, config, self.source_secrets)
        require_reprocessable(flow)
        with jvm_ids(spark, ids.current()) as jvm, beating(Heartbeat(ledger, Application.of(spark))):
            flow.source.check()
            _Reprocess(spark, flow, ledger, wanted, self, jvm).run()
        reach("run.before_end")


@dataclass(slots=True)
class _Reprocess:
    spark: SparkSession
    flow: Flow
    ledger: Ledger
    wanted: ReprocessRequest
    run_of: ReprocessRun
    jvm: JvmIds
    _plans: ReprocessPlans = field(init=False)

    def run(self) -> None:
        """Do again what was chosen, in its order."""
        ledger, wanted = self.ledger, self.wanted
        self._plans = self._open()
        chosen = open_reprocess(ledger.connection(), ledger.schema, wanted, ledger.run_id, ledger.epoch)
        ids.add(query=chosen.query_id)
        in_order = needs_all_later(self.flow.config.load)
        if in_order:
            require_all_later(ledger, wanted, chosen, self.flow.config.load)
        self._require_source(chosen)
        reach("reprocess.before_first")
        log_event(log, logging.INFO, "reprocess_started", batches=len(chosen.batch_ids), dry_run=wanted.dry_run)
        self._all(chosen, in_order=in_order)
        summary = finish_reprocess(
            ledger.connection(), ledger.schema, wanted, chosen.query_id, tuple(self.run_of.again)
        )
        log_event(
            log,
            logging.INFO,
            "reprocess_finished",
            dry_run=wanted.dry_run,
            batches=summary.batches,
            rows_before=summary.rows_before,
            rows_after=summary.rows_after,
        )

    def _open(self) -> ReprocessPlans:
        target = TargetTable(self.flow, self.ledger, replaces=True).open()
        load, handling = self.flow.config.load, self.flow.config.error_handling
        return ReprocessPlans(
            self.ledger,
            target,
            merge_rule(load),
            writing_session(self.ledger, load.role),
            dead_letter_limit(load),
            sorts=self.flow.sorts,
            fail_fast=handling is not None and handling.fail_fast,
            pipeline_id=self.wanted.pipeline_id,
            reprocess_id=self.wanted.reprocess_id,
            batch_column=load.batch_column,
            dry_run=self.wanted.dry_run,
        )

    def _require_source(self, chosen: Chosen) -> None:
        """Return if the source still has all that was chosen; asked before the first row is replaced."""
        missing: dict[int, str] = {}
        for first in range(0, len(chosen.batch_ids), _LOOKED_AT_ONCE):
            some = chosen.batch_ids[first : first + _LOOKED_AT_ONCE]
            batches = [batch for batch in (self._committed(chosen, number) for number in some) if not batch.done]
            said = self.flow.source.gone([_range(batch) for batch in batches])
            missing |= {b.identity.batch_id: text for b, text in zip(batches, said, strict=True) if text}
        if missing:
            named = "; ".join(f"micro-batch {number}: {text}" for number, text in list(missing.items())[:_NAMED])
            raise ReprocessRefusedError(
                "The source does not have all of these micro-batches any more",
                found=f"{named}{' …' if len(missing) > _NAMED else ''}",
                expected=f"all that the {len(chosen.batch_ids)} micro-batches had read; "
                f"{len(chosen.batch_ids) - len(missing)} of them are there",
                cure="Nothing was written. Choose micro-batches whose source is there, or restore it",
            )

    def _all(self, chosen: Chosen, *, in_order: bool) -> None:
        left: tuple[int, ...] = chosen.batch_ids
        last = left[-1]
        while left:
            for number in left:
                self._one(self._committed(chosen, number))
            last = left[-1]
            # What was committed while an older micro-batch was written again may be older now than it was.
            left = self._later(chosen, last) if in_order and not self.wanted.dry_run else ()

    def _later(self, chosen: Chosen, last: int) -> tuple[int, ...]:
        conn, schema, pipeline_id = self.ledger.connection(), self.ledger.schema, self.wanted.pipeline_id
        if not is_newest_query(conn, schema, pipeline_id, chosen.query_id):
            raise ReprocessRefusedError(
                f"Another query of pipeline {pipeline_id!r} has committed micro-batches meanwhile",
                found=f"query {chosen.query_id} is not the one that was used last",
                expected="no newer rows than those of the micro-batches that are done again",
                cure="Reprocess all micro-batches of the newer query as well: older rows may have replaced theirs",
            )
        return batches_after(conn, schema, pipeline_id, chosen.query_id, last)

    def _one(self, batch: CommittedBatch) -> None:
        if batch.done:
            log_event(log, logging.INFO, "batch_skipped", batch=batch.identity.batch_id, reason="already_in_ledger")
            return
        number = batch.identity.batch_id
        self.jvm.set({"batch": number})
        stop, started = self.run_of.stop, monotonic()
        stop.enter_batch()
        try:
            with ids.batch_scope(**{**ids.current(), "batch": number}):
                self.ledger.check_fence()
                reach("reprocess.before_batch")
                books = self._written(batch).books
                reach("reprocess.after_batch")
        finally:
            stop.leave_batch()
        self.run_of.retries.succeeded()
        again = BatchAgain(
            batch_id=number,
            rows_before=batch.rows,
            rows_after=books.written,
            letters_before=batch.letters,
            letters_after=books.dead_lettered + books.write_dead_lettered,
        )
        if self.wanted.dry_run:
            self.run_of.again.append(again)
        log_event(log, logging.INFO, "batch_reprocessed", seconds=round(monotonic() - started, 2), **_told(again))

    def _written(self, batch: CommittedBatch) -> Written:
        offsets = _range(batch)
        sink = PostgresSink(
            self._plans.of_batch(batch.source_rows),
            self.spark.sparkContext.defaultParallelism,
            self.flow.config.load.write_parallelism,
        )
        choice = self._choose(offsets, sink)
        record = self._record(batch, choice)

        def rows(careful: bool) -> DataFrame:
            flow = self.flow.carefully if careful else self.flow
            return with_batch(flow.batch_again(offsets), self._plans.batch_column, batch.identity)

        try:
            written = self._write(sink, choice, rows, record)
        except EtlError:
            raise
        except Exception:
            require_ready_executors(self.spark)
            raise
        if written.state == parts.ALREADY_THERE:
            raise EtlError(
                "The ledger holds a micro-batch of this reprocess that this driver did not write",
                found=f"micro-batch {batch.identity.batch_id} of {self.ledger.pipeline_id}",
                cure="Start it again with the same id: it goes on behind what is there",
            )
        return written

    def _write(self, sink: PostgresSink, choice: Choice, rows: Any, record: BatchRecord) -> Written:
        event = self._event(record)
        if choice.strategy is WriteStrategy.SINGLE:
            return sink.write_in_one_task(rows, record, event)

        def books(counted: Tally | None) -> Looked:
            if counted is None:
                raise BooksDoNotBalanceError("The rows of a stateless batch were not counted")
            return Looked(record, stateless_books)

        return sink.write_staged(rows, record, event, books, again=True)

    def _choose(self, offsets: OffsetRange, sink: PostgresSink) -> Choice:
        forced = self.flow.config.load.write_strategy
        if forced is WriteStrategy.TWO_PHASE:
            forced = WriteStrategy.AUTO
        # As rows that are merged: what goes and what comes is one transaction.
        means = replace(sink.means(), write_mode=WriteMode.UPSERT)
        return choose(forced, self.flow.source.size(offsets), means)

    def _committed(self, chosen: Chosen, number: int) -> CommittedBatch:
        ledger = self.ledger
        return committed_batch(ledger.connection(), ledger.schema, self.wanted, chosen.query_id, number)

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


def _range(batch: CommittedBatch) -> OffsetRange:
    return OffsetRange(batch.identity.start_offsets, batch.identity.end_offsets, batch.files)


def _told(again: BatchAgain) -> dict[str, Any]:
    told = again.model_dump()
    told["batch"] = told.pop("batch_id")
    return told
