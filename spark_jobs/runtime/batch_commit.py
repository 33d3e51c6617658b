"""What happens to one micro-batch: fence, identity, already there?, write, commit, tell."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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
from spark_jobs.logs.events import log_event
from spark_jobs.logs.ids import batch_scope, current
from spark_jobs.runtime.batch import MicroBatch, describe, identify
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.gaps import may_skip
from spark_jobs.runtime.mdc import JvmIds
from spark_jobs.runtime.observed import see_event_time
from spark_jobs.runtime.progress import UnderWay
from spark_jobs.runtime.second_look import AggregateBooks, StatelessBooks
from spark_jobs.runtime.source_progress import SourceProgress
from spark_jobs.runtime.spark_errors import telling_line
from spark_jobs.runtime.stopping import Stop, StopRequestedError
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_column import with_batch
from spark_jobs.sinks.batch_result import BatchRows, SecondLook, Written
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
    on_commit: Callable[[], None]
    totals: Totals = field(default_factory=Totals)
    failure: Exception | None = None
    rolled_back: bool = False
    current_batch: int = 0
    under_way: UnderWay | None = None
    """The micro-batch that has begun; after a failure the one that failed."""
    _query: StreamingQuery | None = None
    _is_own: bool = False
    _read_again: bool = False
    _attached: threading.Event = field(default_factory=threading.Event)
    _jvm_ids: JvmIds = field(init=False)

    def __post_init__(self) -> None:
        self._jvm_ids = JvmIds(self.spark)

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
        self.under_way = None

    def go_with_care(self) -> None:
        """From the next query on, a row on which an expression fails is a dead letter."""
        self.flow = self.flow.carefully

    def __call__(self, df: DataFrame, batch_id: int) -> None:
        """Commit one micro-batch, or raise with nothing written. The first error is kept in ``failure``."""
        with batch_scope(
            pipeline=self.ledger.pipeline_id,
            run=self.ledger.run_id,
            epoch=self.ledger.epoch,
            query=self.query_id,
            batch=batch_id,
        ):
            self._carry_out(df, batch_id)

    def _carry_out(self, df: DataFrame, batch_id: int) -> None:
        try:
            self.current_batch = batch_id
            # The thread in the JVM keeps what it was told with its first batch.
            self._jvm_ids.set({"batch": batch_id} if self._is_own else current())
            self.stop.enter_batch()
            self.under_way = UnderWay(batch_id)
            log_event(log, logging.DEBUG, "batch_started", batch=batch_id)
            self._commit(df, batch_id, self.under_way)
            self.under_way = None
        except Exception as error:
            # Through the JVM and back an exception loses its type; the runner wants the original.
            self.failure = self.failure or self._truth(error)
            self.rolled_back = self.stop.in_batch
            if not isinstance(self.failure, StopRequestedError):
                log_event(log, logging.INFO, "batch_failed", batch=batch_id, reason=telling_line(self.failure))
            raise
        finally:
            self.stop.leave_batch()

    def _commit(self, df: DataFrame, batch_id: int, under_way: UnderWay) -> None:
        self._require_own_query()
        reach("batch.before_fence")
        self.ledger.check_fence()
        batch = identify(self.checkpoint, self.ledger.pipeline_id, self.query_id, batch_id)
        under_way.offsets = batch.offsets
        if self._is_there(batch):
            under_way.phase = "committed"
            self._skip(df, batch)
            return
        reach("batch.after_identity")
        choice = self._choose(batch)
        record = self._record(batch, choice, under_way.began)
        under_way.phase = "writing"
        written, choice = self._written(df, batch, record, choice)
        under_way.phase = "committed"
        if written.state == parts.ALREADY_THERE:
            self._skip(None, batch)
            return
        self.sink.committed(written.books)
        reach("batch.after_commit")
        if self._read_again and written.event_time_max is not None:
            see_event_time(self._running_query(), written.event_time_max)
        self.totals.batches += 1
        self.totals.written += written.books.written
        _tell(batch, written, choice, monotonic() - under_way.began)
        self.progress.committed(batch.offsets)
        self.on_commit()

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
        log_event(log, logging.INFO, "batch_skipped", batch=batch.identity.batch_id, reason="already_in_ledger")

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
            log_event(log, logging.INFO, "letters_found", batch=batch.identity.batch_id, going="staged")
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
        df = self._named(df, batch)
        single, stateful = choice.strategy is WriteStrategy.SINGLE, self.flow.stateful
        rows = self._rows(df, batch)
        if single and not stateful:
            return self.sink.write_in_one_task(rows, record, event, several_read=choice.several_read)
        books: SecondLook = StatelessBooks(self.spark, self.flow, batch, record)
        if stateful:
            query = self._running_query()
            books = AggregateBooks.before_action(self.spark, query, self.flow, self.sink, batch, record)
        if single:
            return self.sink.write_handed_over(df, record, event, books)
        # A second evaluation would count twice what is observed before an aggregation.
        again = not stateful
        if choice.strategy is WriteStrategy.TWO_PHASE:
            return self.sink.write_two_phase(rows, record, event, books, again=again, most_parts=choice.parts)
        return self.sink.write_staged(rows, record, event, books, again=again)

    def _rows(self, df: DataFrame, batch: MicroBatch) -> BatchRows:
        self._read_again = False

        def rows(careful: bool) -> DataFrame:
            # An aggregation's result can be had only once; of the rows before it the query itself takes care.
            if not careful or self.flow.stateful:
                return df
            # What the query gave has neither the records as they came nor a way around a failing expression.
            self._read_again = True
            return self._named(self.flow.carefully.batch_again(batch.offsets), batch)

        return rows

    def _named(self, rows: DataFrame, batch: MicroBatch) -> DataFrame:
        return with_batch(rows, self.flow.config.load.batch_column, batch.identity)

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
    log_event(
        log,
        logging.INFO,
        "batch_committed",
        batch=batch.identity.batch_id,
        source=describe(batch.offsets),
        rows_in=books.source,
        passed=books.passed,
        dead_lettered=books.dead_lettered,
        late=books.late,
        filtered=books.filtered,
        written=books.written,
        refused=books.write_dead_lettered,
        deduplicated=books.write_deduplicated,
        strategy=choice.strategy.value,
        reason=choice.reason,
        seconds=round(seconds, 2),
    )
