"""One replay of dead letters: takes them, brings them home in micro-batches, and gives back what is left.

The ledger is the replay's offset log, instead of a checkpoint that could be lost: a micro-batch is a range of positions
among the letters that the replay took, committed with its rows, its books and the letters' status in one transaction.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.replay import OUTCOMES, ClassOutcome, LetterSample, ReplayMode, ReplayRequest, ReplaySummary
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books
from spark_jobs.contracts.tracker.replays import finish_replay, open_replay, release, total
from spark_jobs.contracts.tracker.taking import Taken
from spark_jobs.faults import reach
from spark_jobs.logs import ids
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.mdc import JvmIds
from spark_jobs.runtime.patch_checks import check_patch
from spark_jobs.runtime.redrive import Redrive
from spark_jobs.runtime.reprocess import Reprocess
from spark_jobs.runtime.run import PipelineRun, SessionFactory
from spark_jobs.sinks.ledger import Ledger

log = logging.getLogger("etl.replay")

_MOST_SAMPLES = 20


@dataclass(slots=True)
class Outcomes:
    """What became of the letters so far."""

    unsendable: int = 0
    perhaps_sent: int = 0
    classes: list[ClassOutcome] = field(default_factory=list)
    samples: list[LetterSample] = field(default_factory=list)

    def begin(self, taken: Taken) -> None:
        """Add what became of letters that an attempt did not take."""
        self.classes = total([*self.classes, *taken.parked])
        self.unsendable, self.perhaps_sent = taken.unsendable, taken.perhaps_sent

    def add(self, outcome: str) -> None:
        """Add what became of a micro-batch's letters."""
        found: dict[str, Any] = json.loads(outcome)
        self.classes = total([*self.classes, *(ClassOutcome(**one) for one in found["classes"])])
        self.samples = [*self.samples, *(LetterSample(**one) for one in found["samples"])][:_MOST_SAMPLES]

    def summary(self, request: ReplayRequest) -> ReplaySummary:
        """Return what became of all."""
        sums = {name: sum(getattr(one, name) for one in self.classes) for name in OUTCOMES}
        return ReplaySummary(
            replay_id=request.replay_id,
            pipeline_id=request.letters.pipeline_id,
            mode=request.mode,
            dry_run=request.dry_run,
            **sums,
            unsendable=self.unsendable,
            perhaps_sent=self.perhaps_sent,
            classes=tuple(self.classes),
            samples=tuple(self.samples),
        )


@dataclass(frozen=True, slots=True)
class ReplayRun(PipelineRun):
    """Carries out one registered replay; its end is recorded as any run's.

    A further attempt takes what the one before has given back.

    :param outcomes: what became of the letters in all attempts.
    """

    outcomes: Outcomes = field(default_factory=Outcomes)

    def _run(self, session: SessionFactory, ledger: Ledger) -> None:
        request = self.request.replay
        if request is None:
            raise EtlError("The run's request holds no replay", cure="start it with `etl-pipeline dead-letters replay`")
        config = PipelineConfig.from_json(self.request.config)
        require_supported(config)
        with self._beside(session, ledger, config) as (spark, jvm):
            check_patch(spark, request.patch)
            flow = Flow.build(spark, config, self.source_secrets)
            ids.add(query=str(request.replay_id))
            jvm.set(ids.current())
            _Replay(spark, flow, ledger, request, self, jvm).run()
        reach("run.before_end")


@dataclass(slots=True)
class _Replay:
    spark: SparkSession
    flow: Flow
    ledger: Ledger
    request: ReplayRequest
    run_of: ReplayRun
    jvm: JvmIds

    def run(self) -> None:
        """Replay everything that was taken, or give it back."""
        ledger, request = self.ledger, self.request
        write = self._way()
        taken = open_replay(ledger.connection(), ledger.schema, request, ledger.run_id, ledger.epoch)
        reach("replay.after_taking")
        log_event(
            log,
            logging.INFO,
            "letters_taken",
            letters=taken.letters,
            freed=taken.released,
            parked=sum(one.parked for one in taken.parked),
            unsendable=taken.unsendable,
            perhaps_sent=taken.perhaps_sent,
            dry_run=request.dry_run,
        )
        self.run_of.outcomes.begin(taken)
        try:
            write.check(taken)
            self.run_of.retries.answered("publish")
            firsts = (taken.first, *taken.ends[:-1])
            for number, (first, end) in enumerate(zip(firsts, taken.ends, strict=False), taken.batches):
                self.jvm.set({"batch": number})
                with ids.batch_scope(**{**ids.current(), "batch": number}):
                    self._batch(write, number, first, end)
        except Exception:
            with suppress(EtlError):
                ledger.forget_connection()
                release(ledger.connection(), ledger.schema, [] if request.dry_run else [request.replay_id])
            raise
        summary = self.run_of.outcomes.summary(request)
        finish_replay(ledger.connection(), ledger.schema, summary)
        log_event(log, logging.INFO, "replay_finished", dry_run=request.dry_run, **summary.numbers)

    def _way(self) -> Reprocess | Redrive:
        if self.request.mode is ReplayMode.REDRIVE:
            return Redrive(self.spark, self.flow, self.ledger, self.request)
        return Reprocess.open(self.spark, self.flow, self.ledger, self.request)

    def _batch(self, write: Reprocess | Redrive, number: int, first: int, last: int) -> None:
        started = monotonic()
        stop = self.run_of.stop
        stop.enter_batch()
        try:
            self.ledger.check_fence()
            reach("replay.before_batch")
            record = self._record(number, first, last)
            written = write.batch(record, self._event(number))
            reach("replay.after_batch")
        finally:
            stop.leave_batch()
        self.run_of.retries.succeeded()
        self.run_of.outcomes.add(written.outcome)
        books, seconds = written.books, monotonic() - started
        log_event(
            log,
            logging.INFO,
            "letters_settled",
            batch=number,
            letters=last - first,
            written=books.written,
            failed=books.dead_lettered + books.write_dead_lettered,
            seconds=round(seconds, 2),
            dry_run=self.request.dry_run,
        )
        if self.request.rate is not None:
            stop.wait(max((last - first) / self.request.rate - seconds, 0))

    def _record(self, number: int, first: int, last: int) -> BatchRecord:
        return BatchRecord(
            identity=BatchIdentity(
                pipeline_id=self.ledger.pipeline_id,
                query_id=str(self.request.replay_id),
                batch_id=number,
                start_offsets={"position": first},
                end_offsets={"position": last},
            ),
            run_id=self.ledger.run_id,
            epoch=self.ledger.epoch,
            checkpoint_location=f"dead letters of {self.request.letters.pipeline_id}",
            books=Books.empty(),
            duration_ms=0,
            strategy="single" if self.request.mode is ReplayMode.REPROCESS else "redrive",
            strategy_reason="a replay settles its letters in one transaction",
            follows=number > 0 and not self.request.dry_run,
        )

    def _event(self, number: int) -> dict[str, Any]:
        event = BatchCommitted(
            pipeline_id=self.ledger.pipeline_id,
            run_id=self.ledger.run_id,
            query_id=str(self.request.replay_id),
            batch_id=number,
            epoch=self.ledger.epoch,
            rows=0,
        )
        return event.model_dump(mode="json")
