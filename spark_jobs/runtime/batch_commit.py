"""What happens to one micro-batch: fence, identity, already there?, write, commit, tell."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import psycopg
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from spark_jobs.contracts.config import WriteStrategy
from spark_jobs.contracts.errors import (
    CheckpointMismatchError,
    EtlError,
    TargetAlteredError,
    TargetMismatchError,
    TooManyDeadLettersError,
)
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.tracker import recovery
from spark_jobs.contracts.tracker.connect import classify
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.faults import reach
from spark_jobs.runtime.batch import MicroBatch, describe, identify
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.gaps import may_skip
from spark_jobs.runtime.second_look import AggregateBooks, StatelessBooks
from spark_jobs.runtime.source_progress import SourceProgress
from spark_jobs.runtime.stopping import Stop
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_result import SecondLook, Written
from spark_jobs.sinks.committing import LettersFoundError
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.letter_copy import LettersBatch
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.strategy import Choice, Result, choose

log = logging.getLogger("etl.batch")


@dataclass(slots=True)
class Totals:
    """What this driver has committed so far."""

    batches: int = 0
    duplicates: int = 0
    written: int = 0


@dataclass(slots=True)
class BatchCommit:
    """The function that ``foreachBatch`` calls. One per query; never called twice at once."""

    spark: SparkSession
    flow: Flow
    checkpoint: Checkpoint
    query_id: str
    first_batch: int
    ledger: Ledger
    sink: PostgresSink
    target: TargetTable
    stop: Stop
    progress: SourceProgress
    totals: Totals = field(default_factory=Totals)
    failure: Exception | None = None
    rolled_back: bool = False
    current_batch: int = 0
    _query: StreamingQuery | None = None
    _is_own: bool = False
    _attached: threading.Event = field(default_factory=threading.Event)

    def attach(self, query: StreamingQuery) -> None:
        """Give the query whose batches come here; the first batch may come before."""
        self._query = query
        self._attached.set()

    def detach(self) -> None:
        """Forget the query and how it ended, before another one starts."""
        self._attached.clear()
        self._query = None
        self._is_own = False
        self.failure = None
        self.rolled_back = False

    def __call__(self, df: DataFrame, batch_id: int) -> None:
        """Commit one micro-batch, or raise with nothing written. The first error is kept in ``failure``."""
        try:
            self.current_batch = batch_id
            self.stop.enter_batch()
            self._commit(df, batch_id)
        except Exception as error:
            # Through the JVM and back an exception loses its type; the runner wants the original.
            self.failure = self.failure or self._truth(error)
            self.rolled_back = self.stop.in_batch
            raise
        finally:
            self.stop.leave_batch()

    def _commit(self, df: DataFrame, batch_id: int) -> None:
        started = monotonic()
        self._require_own_query()
        reach("batch.before_fence")
        self.ledger.check_fence()
        batch = identify(self.checkpoint, self.ledger.pipeline_id, self.query_id, batch_id)
        if self._is_there(batch):
            self._skip(df, batch)
            return
        reach("batch.after_identity")
        choice = self._choose(batch)
        record = self._record(batch, choice, started)
        written, choice = self._written(df, batch, record, choice)
        if written.state == parts.ALREADY_THERE:
            self._skip(None, batch)
            return
        self.sink.committed(written.books)
        reach("batch.after_commit")
        self.totals.batches += 1
        self.totals.written += written.books.written
        _tell(batch, written, choice, monotonic() - started)
        self.progress.committed(batch.offsets)

    def _require_own_query(self) -> None:
        # Asked once: a running query keeps its id.
        if self._is_own:
            return
        found = self._running_query().id
        if found != self.query_id:
            raise CheckpointMismatchError(
                f"The checkpoint {self.checkpoint.location} changed its query while the run started",
                found=f"query {found}",
                expected=f"query {self.query_id}, under which the ledger keeps this run's micro-batches",
                cure="Does another driver, of another pipeline or ledger, use the same checkpointLocation?",
            )
        self._is_own = True

    def _is_there(self, batch: MicroBatch) -> bool:
        state = self.ledger.state_of(batch.identity)
        if state == "decided":
            # By this driver, which then lost the connection: what is decided comes first.
            recovery.finish_decided(self.ledger.connection(), self.ledger.right, role=self.sink.role)
        return state != "absent"

    def _truth(self, error: Exception) -> Exception:
        # Of a table that was dropped or altered ADBC speaks without a SQLSTATE, as of a lost connection; and where it
        # was altered, the rows are not at fault.
        known = classify(error) if isinstance(error, psycopg.Error) else error
        doubtful = isinstance(known, TooManyDeadLettersError) or (isinstance(known, EtlError) and known.retryable)
        if doubtful:
            try:
                self.ledger.forget_connection()
                self.target.recheck()
            except (TargetMismatchError, TargetAlteredError) as altered:
                return altered
            except EtlError:
                log.debug("The target could not be looked at", exc_info=True)
        return known

    def _skip(self, df: DataFrame | None, batch: MicroBatch) -> None:
        if df is not None and self.flow.stateful:
            # The rows are there, but Spark's state for the batch is not: without an evaluation the next one lacks it.
            df.write.format("noop").mode("append").save()
        self.ledger.count_duplicate(batch.identity)
        self.progress.committed(batch.offsets)
        self.totals.duplicates += 1
        log.info("event=batch_skipped batch=%d reason=already_in_ledger", batch.identity.batch_id)

    def _choose(self, batch: MicroBatch) -> Choice:
        aggregation, result = self.flow.aggregation, None
        if aggregation is not None:
            mode = self.flow.streaming.output_mode
            result = Result(mode, aggregation.windows_per_row, self._state_rows(batch))
        choice = choose(
            self.flow.config.load.write_strategy,
            self.flow.source.size(batch.offsets),
            self.sink.means(),
            result=result,
            gaps_possible=may_skip(self.flow.source) and result is None,
        )
        return self.sink.fitting(choice, stateful=self.flow.stateful)

    def _state_rows(self, batch: MicroBatch) -> int | None:
        if batch.identity.batch_id == 0:
            return 0
        return self.ledger.state_rows(self.query_id, batch.identity.batch_id - 1)

    def _record(self, batch: MicroBatch, choice: Choice, started: float) -> BatchRecord:
        return BatchRecord(
            identity=batch.identity,
            run_id=self.ledger.run_id,
            epoch=self.ledger.epoch,
            checkpoint_location=self.checkpoint.location,
            books=Books.empty(),
            duration_ms=int((monotonic() - started) * 1000),
            strategy=choice.strategy.value,
            strategy_reason=choice.reason,
            watermark=batch.watermark,
            files=batch.offsets.files,
            follows=batch.identity.batch_id > self.first_batch,
        )

    def _written(self, df: DataFrame, batch: MicroBatch, record: BatchRecord, choice: Choice) -> tuple[Written, Choice]:
        self.sink.begin(LettersBatch(batch.identity, batch.planned_at))
        try:
            return self._write(df, batch, record, choice), choice
        except LettersFoundError:
            # Tasks commit where the driver cannot publish first; and of a stateless pipeline, which alone comes here,
            # a batch may be evaluated again.
            log.info("event=letters_found batch=%d going=staged", batch.identity.batch_id)
            staged = Choice(WriteStrategy.STAGED, f"{choice.reason}; staged, as it has dead letters to publish")
            again = replace(record, strategy=staged.strategy.value, strategy_reason=staged.reason)
            return self._write(df, batch, again, staged), staged
        except EtlError:
            raise
        except Exception:
            # A task that cannot import what it needs fails before it touches a row: say so, instead of its trace.
            require_ready_executors(self.spark)
            raise

    def _write(self, df: DataFrame, batch: MicroBatch, record: BatchRecord, choice: Choice) -> Written:
        event = self._event(batch)
        single, stateful = choice.strategy is WriteStrategy.SINGLE, self.flow.stateful
        if single and not stateful:
            return self.sink.write_in_one_task(df, record, event)
        books: SecondLook = StatelessBooks(self.spark, self.flow, batch, record)
        if stateful:
            query = self._running_query()
            books = AggregateBooks.before_action(self.spark, query, self.flow, self.sink, batch, record)
        if single:
            return self.sink.write_handed_over(df, record, event, books)
        # A second evaluation would count twice what is observed before an aggregation.
        again = not stateful
        if choice.strategy is WriteStrategy.TWO_PHASE:
            return self.sink.write_two_phase(df, record, event, books, again=again, most_parts=choice.parts)
        return self.sink.write_staged(df, record, event, books, again=again)

    def _running_query(self) -> StreamingQuery:
        # Spark's thread may call for the first batch before `start()` has returned the query to ours.
        self._attached.wait()
        if self._query is None:
            raise RuntimeError("attached without a query")
        return self._query

    def _event(self, batch: MicroBatch) -> dict[str, Any]:
        event = BatchCommitted(
            pipeline_id=self.ledger.pipeline_id,
            run_id=self.ledger.run_id,
            query_id=self.query_id,
            batch_id=batch.identity.batch_id,
            epoch=self.ledger.epoch,
            rows=0,
            watermark=batch.watermark,
        )
        return event.model_dump(mode="json")


def _tell(batch: MicroBatch, written: Written, choice: Choice, seconds: float) -> None:
    books = written.books
    log.info(
        "event=batch_committed batch=%d source=%s rows_in=%d passed=%d dead_lettered=%d late=%d filtered=%d written=%d "
        "refused=%d deduplicated=%d strategy=%s reason=%r seconds=%.2f",
        batch.identity.batch_id,
        describe(batch.offsets),
        books.source,
        books.passed,
        books.dead_lettered,
        books.late,
        books.filtered,
        books.written,
        books.write_dead_lettered,
        books.write_deduplicated,
        choice.strategy.value,
        choice.reason,
        seconds,
    )
