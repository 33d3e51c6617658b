"""Keeps each micro-batch's progress in the tracker, beside the commits: never in a batch's way, never its failure."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from spark_jobs.contracts.errors import DataError, EtlError
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.progress import (
    KEPT_ROWS,
    TRIM_EVERY,
    BatchProgress,
    Phase,
    trim_progress,
    write_progress,
)
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.runtime.progress_listener import ProgressListener
from spark_jobs.runtime.spark_progress import Whose, completed, error_of, is_micro_batch, range_of
from spark_jobs.sources.base import BatchSize, OffsetRange, Source

log = logging.getLogger("etl.progress")

T = TypeVar("T")

_WRITE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 30.0


@dataclass(slots=True)
class UnderWay:
    """A micro-batch that our code has begun, and how far it came."""

    batch_id: int
    phase: Phase = "checking"
    offsets: OffsetRange | None = None
    began: float = field(default_factory=monotonic)
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class ProgressBuffer:
    """What one run has still to write, over all its attempts. Filled and emptied by different threads.

    As many rows as the tracker keeps: the older ones would be deleted at once.
    """

    def __init__(self) -> None:
        self._rows: list[BatchProgress] = []
        self._failures: Counter[tuple[str, int | None]] = Counter()
        self._lock = threading.Lock()
        self._written = 0
        self._said: str | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def attempt(self, query_id: str, batch_id: int | None) -> int:
        """Return the number of the attempt at a micro-batch, from 1."""
        return self._failures[query_id, batch_id] + 1

    def add(self, row: BatchProgress) -> None:
        """Keep a row until it is written."""
        with self._lock:
            if row.outcome == "failed":
                self._failures[row.query_id, row.batch_id] += 1
            self._rows = [*self._rows[-KEPT_ROWS + 1 :], row]

    def write(self, session: Callable[[], Connection], schema: str, pipeline_id: str, *, last: bool = False) -> bool:
        """Write what there is; whether that worked. Raises nothing: what failed is a warning, and waits.

        :param last: this is the run's last word: old rows are deleted now.
        """
        with self._lock:
            rows = self._rows
        if not rows and not (last and self._written):
            return True
        try:
            conn = session()
            write_progress(conn, schema, rows)
            self._forget(rows)
            self._written += len(rows)
            if last or self._written >= TRIM_EVERY:
                trim_progress(conn, schema, pipeline_id)
                self._written = 0
        except DataError as error:
            # Something in it that no column takes: it would stand in the way of all that follows.
            self._forget(rows)
            self._warn(error, given_up=len(rows))
            return False
        except EtlError as error:
            self._warn(error, waiting=len(self._rows))
            return False
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end a run that is well
            self._forget(rows)
            self._warn(EtlError("Writing the micro-batches' progress failed", found=repr(error)), given_up=len(rows))
            return False
        self._said = None
        return True

    def _forget(self, rows: list[BatchProgress]) -> None:
        with self._lock:
            gone = set(map(id, rows))
            self._rows = [row for row in self._rows if id(row) not in gone]

    def _warn(self, error: EtlError, *, waiting: int = 0, given_up: int = 0) -> None:
        reason = error.found or error.what
        level = logging.DEBUG if reason == self._said else logging.WARNING
        self._said = reason
        log_event(log, level, "progress_not_written", waiting=waiting, given_up=given_up, reason=reason)


class ProgressLog:
    """The progress of one query, from Spark's listener and from what our code knows of a failure.

    :param source: says how much it has beyond a micro-batch.
    """

    def __init__(
        self,
        listener: ProgressListener,
        buffer: ProgressBuffer,
        whose: Whose,
        source: Source,
        checkpoint: Checkpoint,
        schema: str,
    ) -> None:
        self._listener = listener
        self._buffer = buffer
        self._whose = whose
        self._source = source
        self._checkpoint = checkpoint
        self._schema = schema
        self._due = monotonic() + _WRITE_SECONDS

    def write_when_due(self, session: Callable[[], Connection]) -> None:
        """Take what Spark has told, and write it every two seconds; after a failure every thirty. Raises nothing."""
        self._collect()
        if not len(self._buffer) or monotonic() < self._due:
            return
        good = self._buffer.write(session, self._schema, self._whose.pipeline_id)
        self._due = monotonic() + (_WRITE_SECONDS if good else _PAUSE_SECONDS)

    def query_ended(self, spark_run_id: str) -> None:
        """Take the last that Spark has to tell about a query that has ended; its JVM is alive."""
        self._listener.wait_for_end(spark_run_id)
        self._collect()

    def failed(self, spark_run_id: str, under_way: UnderWay | None, error: Exception) -> None:
        """Keep what is known of the micro-batch at which the query ended. Raises nothing.

        :param under_way: None when Spark failed before it came to our code.
        """
        batch_id = under_way.batch_id if under_way else _quietly(self._next_batch)
        offsets = under_way.offsets if under_way else None
        if offsets is None and batch_id is not None:
            offsets = _quietly(partial(self._planned, batch_id))
        self._buffer.add(
            BatchProgress(
                pipeline_id=self._whose.pipeline_id,
                query_id=self._whose.query_id,
                batch_id=batch_id,
                spark_run_id=spark_run_id,
                run_id=self._whose.run_id,
                epoch=self._whose.epoch,
                attempt=self._buffer.attempt(self._whose.query_id, batch_id),
                outcome="failed",
                phase=under_way.phase if under_way else "planning",
                triggered_at=under_way.began_at if under_way else None,
                duration_ms=round((monotonic() - under_way.began) * 1000) if under_way else None,
                sources=None if offsets is None else [range_of(offsets.start, offsets.end)],
                error=error_of(error),
            )
        )

    def _collect(self) -> None:
        for text in self._listener.news():
            try:
                news = json.loads(text)
                if is_micro_batch(news):
                    attempt = self._buffer.attempt(self._whose.query_id, news["batchId"])
                    self._buffer.add(completed(news, self._whose, attempt, self._backlog))
            except Exception as error:  # noqa: BLE001 - Spark may say anything; no batch fails for what is told of it
                log_event(log, logging.WARNING, "progress_not_understood", reason=str(error))

    def _backlog(self, end: Any, latest: Any) -> BatchSize:
        return _quietly(partial(self._source.size, OffsetRange(end, latest))) or BatchSize()

    def _next_batch(self) -> int | None:
        planned, done = self._checkpoint.last_planned(), self._checkpoint.last_commit()
        if planned is None:
            return 0
        return planned + 1 if planned == done else planned

    def _planned(self, batch_id: int) -> OffsetRange | None:
        entry = self._checkpoint.offsets(batch_id)
        if entry is None:
            return None
        before = self._checkpoint.offsets(batch_id - 1) if batch_id else None
        return OffsetRange(before.source if before else None, entry.source)


def _quietly(question: Callable[[], T]) -> T | None:
    try:
        return question()
    except Exception:
        # A checkpoint or a source that cannot be asked now must not hide what it is about.
        log.debug("Something about a micro-batch's progress is not known", exc_info=True)
        return None
