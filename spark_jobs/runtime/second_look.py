"""The second look: an aggregating batch's own source range, read again, for exactly the rows that left on the way.

What goes through an aggregation is gone when the batch reaches the sink. Where the observed counts say that there were
dead letters or late rows, the range is read again as a batch and those rows are kept, or counted. Clean batches pay
nothing. The numbers of both looks must be equal, else the batch is done again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from spark_jobs.contracts.config import LateDataStrategy
from spark_jobs.contracts.errors import BooksDoNotBalanceError, EtlError
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.logs.events import log_event
from spark_jobs.rows import OUTCOME, TO_WRITERS, Outcome, outcome
from spark_jobs.runtime.batch import MicroBatch
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.gaps import source_gaps
from spark_jobs.runtime.observed import (
    Observed,
    evaluated_once,
    jobs_so_far,
    observed_rows,
    rows_dropped_as_late,
    state_rows,
)
from spark_jobs.sinks.batch_result import Looked
from spark_jobs.sinks.committing import stateless_books
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.sorting import Tally, moment
from spark_jobs.sinks.staging import Staged

log = logging.getLogger("etl.batch")


@dataclass(frozen=True, slots=True)
class StatelessBooks:
    """The books of a staged batch of a stateless pipeline: its writers have seen every row."""

    spark: SparkSession
    flow: Flow
    batch: MicroBatch
    record: BatchRecord

    def __call__(self, counted: Tally | None) -> Looked:
        """Return record and books; notes what the source had lost."""
        if counted is None:
            raise BooksDoNotBalanceError("The rows of a stateless batch were not counted")
        gaps = source_gaps(self.spark, self.flow.source, self.batch.offsets, counted.source)
        return Looked(replace(self.record, gaps=gaps), stateless_books)


@dataclass(frozen=True, slots=True)
class AggregateBooks:
    """Balances the books of one batch of an aggregating pipeline. Made before the batch's action, asked after it."""

    spark: SparkSession
    query: StreamingQuery
    flow: Flow
    sink: PostgresSink
    batch: MicroBatch
    record: BatchRecord
    jobs_before: frozenset[int]

    @classmethod
    def before_action(
        cls,
        spark: SparkSession,
        query: StreamingQuery,
        flow: Flow,
        sink: PostgresSink,
        batch: MicroBatch,
        record: BatchRecord,
    ) -> AggregateBooks:
        """Remember what had run before the batch's action."""
        return cls(spark, query, flow, sink, batch, record, jobs_so_far(spark, query))

    def __call__(self, _counted: Tally | None) -> Looked:
        """Return record and books of the batch; looks a second time only where there is something to see."""
        counts = observed_rows(self.query)
        late_suspected = rows_dropped_as_late(self.query) > 0
        trusted = evaluated_once(self.spark, self.query, self.jobs_before)
        if trusted and not counts.dead_lettered and not late_suspected:
            return self._looked(counts, late=0, letters=None)
        again = self._look_again(everything=not trusted, late=late_suspected)
        try:
            return self._seen(again, counts, trusted=trusted, late_suspected=late_suspected)
        except EtlError:
            self.sink.discard(again)
            raise

    def _seen(self, again: Staged, counts: Observed, *, trusted: bool, late_suspected: bool) -> Looked:
        seen = again.tally
        if not trusted:
            batch_id = self.batch.identity.batch_id
            log_event(log, logging.WARNING, "batch_recounted", batch=batch_id, reason="stage_ran_again")
            counts = _counts(seen)
        elif seen.dead_lettered != counts.dead_lettered:
            raise BooksDoNotBalanceError(
                f"The second look at micro-batch {self.batch.identity.batch_id} saw other dead letters than the first",
                found=f"{seen.dead_lettered} dead letters",
                expected=f"{counts.dead_lettered}",
                cure="Nothing was committed; the batch is done again (did its files change?)",
            )
        # A row in several sliding windows may be late for one of them only: Spark drops that part, the row has passed.
        one_window = self.flow.aggregation is not None and self.flow.aggregation.windows_per_row == 1
        if late_suspected and one_window and not seen.late:
            raise BooksDoNotBalanceError(
                f"The second look at micro-batch {self.batch.identity.batch_id} did not find the late rows",
                expected="the rows that Spark dropped as late",
                cure="Nothing was committed; the batch is done again",
            )
        self._tell_late(seen)
        return self._looked(counts, late=seen.late, letters=again)

    def _look_again(self, *, everything: bool, late: bool) -> Staged:
        past = self.flow.past_range(self.batch.offsets)
        aggregation = self.flow.aggregation
        if late and aggregation is not None:
            is_late = aggregation.late(self.batch.late_watermark_ms)
            past = past.withColumn(OUTCOME, F.when(is_late, outcome(Outcome.LATE)).otherwise(F.col(OUTCOME)))
        return self.sink.stage(_without_data(past, keep_all=everything), "second look", rows=False)

    def _tell_late(self, seen: Tally) -> None:
        late_data = self.flow.streaming.late_data
        if seen.late and late_data is not None and late_data.strategy is LateDataStrategy.LOG_AND_DROP:
            log_event(
                log,
                logging.WARNING,
                "late_rows_dropped",
                batch=self.batch.identity.batch_id,
                rows=seen.late,
                watermark_ms=self.batch.late_watermark_ms,
            )

    def _looked(self, counts: Observed, late: int, letters: Staged | None) -> Looked:
        record = replace(
            self.record,
            gaps=source_gaps(self.spark, self.flow.source, self.batch.offsets, counts.source),
            event_time_min=moment(counts.event_time_min),
            event_time_max=moment(counts.event_time_max),
            state_rows=state_rows(self.query),
        )

        def books_of(report: PartReport) -> Books:
            return Books(
                source=counts.source,
                passed=counts.passed - late,
                dead_lettered=counts.dead_lettered,
                late=late,
                filtered=counts.filtered,
                sink=report.tally.passed,
                written=report.written,
                write_dead_lettered=report.refused,
                write_deduplicated=report.deduplicated,
            )

        return Looked(record, books_of, letters)


def _without_data(df: DataFrame, *, keep_all: bool) -> DataFrame:
    wanted = F.lit(True) if keep_all else F.col(OUTCOME).isin(int(Outcome.DEAD_LETTER), int(Outcome.LATE))
    return df.filter(wanted).select(*[name for name in TO_WRITERS if name in df.columns])


def _counts(seen: Tally) -> Observed:
    return Observed(
        source=seen.source,
        passed=seen.passed + seen.late,
        dead_lettered=seen.dead_lettered,
        filtered=seen.filtered,
        event_time_min=seen.event_time_min,
        event_time_max=seen.event_time_max,
    )
