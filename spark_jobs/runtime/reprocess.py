"""Reprocess: dead letters through the pipeline's own transforms into its target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.replay import ReplayRequest
from spark_jobs.contracts.tracker.connect import classified, raw
from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.contracts.tracker.taking import Taken
from spark_jobs.runtime.executors import require_ready_executors
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.replay_frame import Kind, ReplayFrame
from spark_jobs.runtime.stored_letters import asking
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_column import with_batch
from spark_jobs.sinks.batch_result import Written
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merge_sql import merge_rule
from spark_jobs.sinks.plans import writing_session
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.replay_plans import ReplayPlans, count_letters_of, letters_query, positions


@dataclass
class Reprocess:
    """Writes the letters of one replay. A micro-batch's rows, books and letters are one transaction."""

    frame: ReplayFrame
    plans: ReplayPlans
    sink: PostgresSink
    _kinds: list[Kind] = field(default_factory=list)

    @classmethod
    def open(cls, spark: SparkSession, flow: Flow, ledger: Ledger, request: ReplayRequest) -> Reprocess:
        """Look at the target, before any letter is taken for it.

        :raises TargetMismatchError: the rows do not fit it, as at a run's start.
        """
        load = flow.config.load
        session = writing_session(ledger, load.role)
        frame = ReplayFrame(spark, flow, request, session)
        target = TargetTable(flow, ledger, rows=frame.target).open()
        plans = ReplayPlans(
            ledger,
            target,
            merge_rule(load),
            session,
            Limit(),
            replay_id=request.replay_id,
            max_attempts=request.max_attempts,
            dry_run=request.dry_run,
            keeps_raw=flow.source.keeps_raw and not flow.stateful,
        )
        return cls(frame, plans, PostgresSink(plans, 1))

    def check(self, taken: Taken) -> None:
        """Return if the letters that were taken can go through the pipeline.

        :raises ConfigError: they cannot; see :meth:`~spark_jobs.runtime.replay_frame.ReplayFrame.check`.
        """
        conditions = [self._condition(kind) for kind in Kind]
        counts = count_letters_of(self.plans.ledger, self.frame.request, taken.first, taken.last, conditions)
        kinds = dict(zip(Kind, counts, strict=True))
        self.frame.check(kinds)
        self._kinds = [kind for kind, count in kinds.items() if count]

    def batch(self, record: BatchRecord, event: dict[str, Any]) -> Written:
        """Write and settle the letters of the batch's positions."""
        first, last = positions(record)
        request = self.frame.request
        questions = {
            kind.name: letters_query(
                self.plans.ledger,
                request,
                first,
                last,
                columns=kind.columns(self.frame.flow, request),
                condition=self._condition(kind),
            )
            for kind in self._kinds
        }
        try:
            with asking(self.frame.spark, questions):
                written = self.sink.write_in_one_task(
                    lambda careful: self._rows(record, careful=careful), record, event
                )
        except EtlError:
            raise
        except Exception:
            require_ready_executors(self.frame.spark)
            raise
        if written.state == parts.ALREADY_THERE:
            raise EtlError(
                "The ledger holds a micro-batch of this replay that this driver did not write",
                found=f"micro-batch {record.identity.batch_id} of replay {self.plans.replay_id}",
                cure="Start a new replay: it takes what is still pending",
            )
        return written if written.outcome else replace(written, outcome=self._outcome(record))

    def _rows(self, record: BatchRecord, *, careful: bool) -> DataFrame:
        frame = self.frame.carefully if careful else self.frame
        return with_batch(frame.of(self._kinds), frame.flow.config.load.batch_column, record.identity)

    def _outcome(self, record: BatchRecord) -> str:
        # The batch was committed, and the answer was lost on the way.
        with classified("Asking what became of the letters of a micro-batch"):
            rows = raw(self.plans.ledger.connection(), self.plans.settling(record).outcome)
        return str(rows[0][0])

    def _condition(self, kind: Kind) -> str:
        return kind.condition(self.frame.flow)
