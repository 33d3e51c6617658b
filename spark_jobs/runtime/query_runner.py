"""Start the query, wait for its end, keep the heartbeat, and say truthfully how it ended."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from py4j.protocol import Py4JNetworkError
from pyspark.errors import StreamingQueryException
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from spark_jobs.contracts.config import TriggerKind
from spark_jobs.contracts.errors import BooksDoNotBalanceError, DataError, FencedError
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.batch_commit import BatchCommit
from spark_jobs.runtime.heartbeat import Application, Heartbeat
from spark_jobs.runtime.progress import ProgressLog
from spark_jobs.runtime.spark_errors import translate
from spark_jobs.runtime.stopping import StoppedInBatchError, StopRequestedError, stopped_between_batches
from spark_jobs.transforms.try_eval import expression_failed

log = logging.getLogger("etl.run")

_POLL_SECONDS = 0.2
_MOST_RESTARTS = 2


class ExpressionFailedError(DataError):
    """An expression before an aggregation failed on a row: the query starts again, and makes it a dead letter."""


@dataclass(slots=True)
class QueryRunner:
    """Runs one streaming query to its end."""

    commit: BatchCommit
    application: Application
    progress: ProgressLog

    def run(self) -> None:
        """Run until the trigger has nothing more to do, or somebody asks to stop.

        A batch whose books do not balance ends the query, which starts again from its checkpoint, twice at most. So
        does, once, a row before an aggregation on which an expression fails: from then on such rows are dead letters.

        :raises EtlError: what ended the query; nothing of the micro-batch under way was written.
        :raises FencedError: a newer run has taken over.
        :raises StopRequestedError: the run was asked to stop.
        """
        restarts = 0
        while True:
            try:
                self._run_once()
            except ExpressionFailedError as failed:
                # An aggregation's batch can only be evaluated by its query.
                self._start_again()
                self.commit.go_with_care()
                log_event(
                    log,
                    logging.WARNING,
                    "query_restarted",
                    reason="expression_failed",
                    going="row_by_row",
                    first=failed.found,
                )
            except BooksDoNotBalanceError:
                if restarts == _MOST_RESTARTS:
                    raise
                restarts += 1
                self._start_again()
                log_event(
                    log,
                    logging.ERROR,
                    "query_restarted",
                    reason="books_do_not_balance",
                    restart=restarts,
                    exc_info=True,
                )
            else:
                return

    def _start_again(self) -> None:
        # The checkpoint is shared with a newer run's query: only the newest run may start one on it.
        self.commit.ledger.check_fence()
        self.commit.detach()

    def _run_once(self) -> None:
        query = self._writer().start()
        self.commit.attach(query)
        # Asked now: a JVM that has died does not say it.
        spark_run_id = str(query.runId)
        try:
            self._follow(query)
        except Exception as error:
            self._keep_failure(spark_run_id, error)
            raise
        self.progress.query_ended(spark_run_id)

    def _follow(self, query: StreamingQuery) -> None:
        try:
            self._wait(query)
        except FencedError:
            query.stop()
            raise
        except StreamingQueryException as error:
            cause = self._cause(error)
            self._require_not_rolled_back(cause)
            raise cause from error
        if self.commit.stop.asked and query.isActive:
            query.stop()
        if self.commit.stop.asked:
            # A batch may have failed so late that Spark has not told us yet.
            self._require_not_rolled_back(self.commit.failure)
            raise stopped_between_batches()

    def _keep_failure(self, spark_run_id: str, error: Exception) -> None:
        if not isinstance(error, Py4JNetworkError | OSError):
            # Else the JVM has died, and its listeners with it.
            self.progress.query_ended(spark_run_id)
        under_way = self.commit.under_way
        if under_way is not None or not isinstance(error, FencedError | StopRequestedError):
            self.progress.failed(spark_run_id, under_way, error)

    def _require_not_rolled_back(self, cause: Exception | None) -> None:
        if self.commit.stop.asked and self.commit.rolled_back:
            raise StoppedInBatchError(
                "The run was asked to stop",
                found=f"the micro-batch under way failed and was rolled back: {cause}",
                cure="The next run does the micro-batch again",
            ) from cause

    def _writer(self) -> DataStreamWriter:
        streaming = self.commit.flow.streaming
        trigger = streaming.trigger
        writer = (
            self.commit.flow.streaming_frame.writeStream.queryName(streaming.query_name)
            .outputMode(streaming.output_mode.value)
            .option("checkpointLocation", streaming.checkpoint_location)
            .foreachBatch(self.commit)
        )
        if trigger.kind is TriggerKind.AVAILABLE_NOW:
            return writer.trigger(availableNow=True)
        if trigger.kind is TriggerKind.ONCE:
            return writer.trigger(once=True)
        # Spark's own continuous mode has no micro-batches, and so nothing that could be committed exactly once: here it
        # means one micro-batch right after the other.
        return writer.trigger(processingTime=str(trigger.interval or "0 seconds"))

    def _wait(self, query: StreamingQuery) -> None:
        with Heartbeat(self.commit.ledger, self.application) as heartbeat:
            while not query.awaitTermination(_POLL_SECONDS):  # type: ignore[arg-type]  # takes parts of a second
                if self.commit.stop.may_end():
                    return
                heartbeat.beat()
                self.progress.write_when_due(heartbeat.session)

    def _cause(self, error: StreamingQueryException) -> Exception:
        cause: Exception = self.commit.failure or error
        words = expression_failed(cause) or expression_failed(error)
        if words is None:
            return translate(cause)
        if self.commit.flow.stateful and not self.commit.flow.careful:
            return ExpressionFailedError("An SQL expression of the pipeline fails on a row", found=words)
        return DataError(
            "An expression that is none of a select's or a filter's fails on a row",
            found=words,
            expected="values that the aggregation's functions, or the registered transforms, can take",
            cure="Use a wider type, or a filter before it, or correct the transform; then run again: nothing of "
            "the micro-batch was written",
        )
