"""Committed micro-batches done again: their source ranges are read anew, and their rows take the place of the old ones.

Each batch is one transaction with its ledger row, under the reprocess's own pipeline id and the query and batch id that
it had. What is committed there is not done a second time, so a further attempt goes on where the one before stopped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.errors import EtlError, ReprocessRefusedError
from spark_jobs.contracts.reprocess_batches import BatchAgain, ReprocessRequest
from spark_jobs.contracts.tracker.reprocess_batches import (
    Chosen,
    CommittedBatch,
    committed_batch,
    finish_reprocess,
    open_reprocess,
)
from spark_jobs.contracts.tracker.reprocess_choice import batches_after, is_newest_query
from spark_jobs.faults import reach
from spark_jobs.logs import ids
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.batch_again import BatchAgainWriter, source_range
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.mdc import JvmIds
from spark_jobs.runtime.reprocess_rules import (
    needs_all_later,
    require_all_later,
    require_reprocessable,
)
from spark_jobs.runtime.run import PipelineRun, SessionFactory
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_result import Written
from spark_jobs.sinks.ledger import Ledger

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
        self.again.clear()
        with self._beside(session, ledger, config) as (spark, jvm):
            flow = Flow.build(spark, config, self.source_secrets)
            require_reprocessable(flow)
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
    _writer: BatchAgainWriter = field(init=False)

    def run(self) -> None:
        """Do again what was chosen, in its order."""
        ledger, wanted = self.ledger, self.wanted
        self._writer = BatchAgainWriter.open(self.spark, self.flow, ledger, wanted)
        chosen = open_reprocess(ledger.connection(), ledger.schema, wanted, ledger.run_id, ledger.epoch)
        ids.add(query=chosen.query_id)
        in_order = needs_all_later(self.flow.config.load)
        if in_order:
            require_all_later(ledger, wanted, chosen, self.flow.config.load)
        self._require_source(chosen)
        reach("reprocess.before_first")
        log_event(log, logging.INFO, "reprocess_started", batches=len(chosen.batch_ids), dry_run=wanted.dry_run)
        if in_order and not wanted.dry_run and not ledger.has_any_batch():
            self._rehearse(chosen)
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

    def _require_source(self, chosen: Chosen) -> None:
        """Return if the source still has all that was chosen; asked before the first row is replaced."""
        missing: dict[int, str] = {}
        for first in range(0, len(chosen.batch_ids), _LOOKED_AT_ONCE):
            some = chosen.batch_ids[first : first + _LOOKED_AT_ONCE]
            batches = [batch for batch in (self._committed(chosen, number) for number in some) if not batch.done]
            said = self.flow.source.gone([source_range(batch) for batch in batches])
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

    def _rehearse(self, chosen: Chosen) -> None:
        """Do all of it and roll it back: what is refused on the way would leave old values in the target for good."""
        for number in chosen.batch_ids:
            self._written(self._committed(chosen, number), rehearsal=True)

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
            _tell_skipped(batch)
            return
        number, started = batch.identity.batch_id, monotonic()
        written = self._written(batch)
        self.run_of.retries.succeeded()
        if written.state == parts.ALREADY_THERE:
            _tell_skipped(batch)
            return
        books = written.books
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

    def _written(self, batch: CommittedBatch, *, rehearsal: bool = False) -> Written:
        number, stop = batch.identity.batch_id, self.run_of.stop
        self.jvm.set({"batch": number})
        stop.enter_batch()
        try:
            with ids.batch_scope(**{**ids.current(), "batch": number}):
                self.ledger.check_fence()
                reach("reprocess.before_batch")
                written = self._writer.write(batch, rehearsal=rehearsal)
                reach("reprocess.after_batch")
        finally:
            stop.leave_batch()
        return written

    def _committed(self, chosen: Chosen, number: int) -> CommittedBatch:
        ledger = self.ledger
        return committed_batch(ledger.connection(), ledger.schema, self.wanted, chosen.query_id, number)


def _tell_skipped(batch: CommittedBatch) -> None:
    log_event(log, logging.INFO, "batch_skipped", batch=batch.identity.batch_id, reason="already_in_ledger")


def _told(again: BatchAgain) -> dict[str, Any]:
    told = again.model_dump()
    told["batch"] = told.pop("batch_id")
    return told
