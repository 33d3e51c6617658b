"""One replay of dead letters: takes them, brings them home in micro-batches, and gives back what is left.

The ledger is the replay's offset log, instead of a checkpoint that could be lost: a micro-batch is a range of positions
among the letters that the replay took, committed with its rows, its books and the letters' status in one transaction.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.replay import ClassOutcome, LetterSample, ReplayMode, ReplayRequest, ReplaySummary
from spark_jobs.contracts.tracker.connect import classified, raw
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books
from spark_jobs.contracts.tracker.replays import finish_replay, open_replay, release, total
from spark_jobs.faults import reach
from spark_jobs.logs import ids
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.heartbeat import Heartbeat
from spark_jobs.runtime.mdc import JvmIds, jvm_ids
from spark_jobs.runtime.patch_checks import check_patch
from spark_jobs.runtime.redrive import Redrive
from spark_jobs.runtime.replay_frame import Kind, ReplayFrame
from spark_jobs.runtime.run import PipelineRun, SessionFactory
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_result import Written
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merging import merge_rule
from spark_jobs.sinks.plans import writing_session
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.replay_plans import ReplayPlans, count_letters_of, letters_query

log = logging.getLogger("etl.replay")

_MOST_SAMPLES = 20
_BEAT_SECONDS = 2.0


@dataclass(slots=True)
class Outcomes:
    """What became of the letters so far."""

    classes: list[ClassOutcome] = field(default_factory=list)
    samples: list[LetterSample] = field(default_factory=list)

    def add(self, outcome: str) -> None:
        """Add what became of a micro-batch's letters."""
        found: dict[str, Any] = json.loads(outcome)
        self.classes = total([*self.classes, *(ClassOutcome(**one) for one in found["classes"])])
        self.samples = [*self.samples, *(LetterSample(**one) for one in found["samples"])][:_MOST_SAMPLES]

    def summary(self, request: ReplayRequest) -> ReplaySummary:
        """Return what became of all."""
        sums = {
            name: sum(getattr(one, name) for one in self.classes) for name in ("taken", "replayed", "failed", "parked")
        }
        return ReplaySummary(
            replay_id=request.replay_id,
            pipeline_id=request.letters.pipeline_id,
            mode=request.mode,
            dry_run=request.dry_run,
            **sums,
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
        self._recover(ledger, config)
        spark = session()
        self.stop.on_jvm_shutdown(spark)
        check_patch(spark, request.patch)
        flow = Flow.build(spark, config, self.source_secrets)
        ids.add(query=str(request.replay_id))
        with jvm_ids(spark, ids.current()), _beating(Heartbeat(ledger, spark.sparkContext.applicationId)):
            _Replay(spark, flow, ledger, request, self).run()
        reach("run.before_end")


@dataclass(slots=True)
class _Replay:
    spark: SparkSession
    flow: Flow
    ledger: Ledger
    request: ReplayRequest
    run_of: ReplayRun

    def run(self) -> None:
        """Replay everything that was taken, or give it back."""
        ledger, request = self.ledger, self.request
        write = self._redrive() if request.mode is ReplayMode.REDRIVE else self._reprocess()
        taken = open_replay(ledger.connection(), ledger.schema, request, ledger.run_id, ledger.epoch)
        reach("replay.after_taking")
        log_event(
            log,
            logging.INFO,
            "letters_taken",
            letters=taken.letters,
            freed=taken.released,
            parked=taken.parked,
            dry_run=request.dry_run,
        )
        try:
            last = taken.first + taken.letters
            write.check(taken.first, last)
            for number, first in enumerate(range(taken.first, last, request.letters_per_batch), taken.batches):
                JvmIds(self.spark).set({"batch": number})
                with ids.batch_scope(**{**ids.current(), "batch": number}):
                    self._batch(write, number, first, min(first + request.letters_per_batch, last))
        except Exception:
            with suppress(EtlError):
                ledger.forget_connection()
                release(ledger.connection(), ledger.schema, [] if request.dry_run else [request.replay_id])
            raise
        summary = self.run_of.outcomes.summary(request)
        finish_replay(ledger.connection(), ledger.schema, summary)
        counts = {name: getattr(summary, name) for name in ("taken", "replayed", "failed", "parked")}
        log_event(log, logging.INFO, "replay_finished", **counts, dry_run=request.dry_run)

    def _batch(self, write: _Reprocess | Redrive, number: int, first: int, last: int) -> None:
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
        self.run_of.outcomes.add(written.outcome or write.outcome(record))
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

    def _reprocess(self) -> _Reprocess:
        target = TargetTable(self.flow, self.ledger).open()
        load = self.flow.config.load
        session = writing_session(self.ledger, load.role)
        plans = ReplayPlans(
            self.ledger,
            target,
            merge_rule(load),
            session,
            Limit(),
            replay_id=self.request.replay_id,
            max_attempts=self.request.max_attempts,
            dry_run=self.request.dry_run,
        )
        frame = ReplayFrame(self.spark, self.flow, self.request, session)
        return _Reprocess(self.spark, frame, plans, PostgresSink(plans, 1), self.ledger, self.request)

    def _redrive(self) -> Redrive:
        return Redrive(self.spark, self.flow, self.ledger, self.request)


@dataclass(slots=True)
class _Reprocess:
    """Letters through the pipeline's own transforms into its target."""

    spark: SparkSession
    frame: ReplayFrame
    plans: ReplayPlans
    sink: PostgresSink
    ledger: Ledger
    request: ReplayRequest
    kinds: dict[Kind, int] = field(default_factory=dict)

    def check(self, first: int, last: int) -> None:
        """Return if the letters that were taken can go through the pipeline."""
        self.kinds = {kind: self._count(kind, first, last) for kind in Kind}
        self.frame.check(self.kinds)

    def outcome(self, record: BatchRecord) -> str:
        """Ask what became of the letters of a micro-batch that was committed without an answer."""
        with classified("Asking what became of the letters of a micro-batch"):
            rows = raw(self.ledger.connection(), self.plans.settling(record).outcome)
        return str(rows[0][0])

    def batch(self, record: BatchRecord, event: dict[str, Any]) -> Written:
        """Write and settle the letters of the batch's positions, in one transaction."""
        key = record.identity
        first, last = key.start_offsets["position"], key.end_offsets["position"]
        schema, replay_id = self.ledger.schema, self.request.replay_id
        conn = self.ledger.connection()
        questions = {
            kind: letters_query(conn, schema, replay_id, first, last, self._condition(kind))
            for kind, count in self.kinds.items()
            if count
        }
        try:
            written = self.sink.write_in_one_task(
                lambda careful: self.frame.of(questions, careful_way=careful), record, event
            )
        except EtlError:
            raise
        except Exception:
            require_ready_executors(self.spark)
            raise
        if written.state == parts.ALREADY_THERE:
            raise EtlError(
                "The ledger holds a micro-batch of this replay that this driver did not write",
                found=f"micro-batch {key.batch_id} of replay {replay_id}",
                cure="Start a new replay: it takes what is still pending",
            )
        return written

    def _count(self, kind: Kind, first: int, last: int) -> int:
        conn, schema = self.ledger.connection(), self.ledger.schema
        return count_letters_of(conn, schema, self.request.replay_id, first, last, self._condition(kind))

    def _condition(self, kind: Kind) -> str:
        return kind.condition(self.frame.flow)


@contextmanager
def _beating(heartbeat: Heartbeat) -> Iterator[None]:
    """Keep the run's sign of life up while the block runs; who has lost the right finds out with the next commit."""
    over = threading.Event()

    def beat() -> None:
        with heartbeat:
            while not over.wait(_BEAT_SECONDS):
                with suppress(EtlError):
                    heartbeat.beat()

    thread = threading.Thread(target=beat, name="etl-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
