"""One run of a pipeline, from its request to its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.config.secret_values import is_secret_key
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import BreakerOpenError, EtlError, FencedError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.redaction import masked
from spark_jobs.contracts.reprocess_batches import owning_pipeline
from spark_jobs.contracts.run_request import EndState, RunRequest, RunResult
from spark_jobs.contracts.tracker import recovery
from spark_jobs.contracts.tracker.connect import Connection, classify, connect
from spark_jobs.contracts.tracker.letters import compact_tally
from spark_jobs.contracts.tracker.queries import summarise_run
from spark_jobs.contracts.tracker.runs import claim_epoch, finish_run
from spark_jobs.contracts.tracker.statements import application_name
from spark_jobs.faults import reach
from spark_jobs.logs import ids
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.batch_commit import BatchCommit
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.runtime.flow import Flow, streaming_of
from spark_jobs.runtime.heartbeat import Application, Heartbeat, beating
from spark_jobs.runtime.mdc import JvmIds, jvm_ids
from spark_jobs.runtime.progress import ProgressBuffer, ProgressLog
from spark_jobs.runtime.progress_listener import ProgressListener
from spark_jobs.runtime.query_runner import QueryRunner
from spark_jobs.runtime.readiness import ready_query
from spark_jobs.runtime.retry import Retries
from spark_jobs.runtime.source_progress import SourceProgress
from spark_jobs.runtime.spark_errors import translate
from spark_jobs.runtime.spark_progress import Whose
from spark_jobs.runtime.stopping import Stop, StopRequestedError
from spark_jobs.runtime.target_table import TargetTable
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.letter_copies import build_copy
from spark_jobs.sinks.letter_copy import LetterCopy
from spark_jobs.sinks.merge_sql import merge_rule
from spark_jobs.sinks.plans import Plans, dead_letter_limit, writing_session
from spark_jobs.sinks.postgres import PostgresSink
from spark_jobs.sinks.publishing import LetterPublisher
from spark_jobs.sinks.staging import sweep
from spark_jobs.sinks.target import Target

log = logging.getLogger("etl.run")

SessionFactory = Callable[[], SparkSession]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    :param result: None when the tracker could not be reached at the end: the ledger's books say it later.
    :param error: what ended the run, None when it finished.
    """

    exit_code: ExitCode
    result: RunResult | None
    error: EtlError | None = None


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """Carries out one registered run.

    :param database: connection of the target and of its ledger: both are in one database, or nothing is atomic.
    :param source_secrets: reader options from the source's connection.
    :param retries: what the run does again after a passing fault.
    :param copy_secrets: options from the connection of the dead letters' copy.
    """

    request: RunRequest
    database: DatabaseConnection
    source_secrets: dict[str, str]
    stop: Stop
    retries: Retries
    copy_secrets: Mapping[str, str] = field(default_factory=dict)
    progress: ProgressBuffer = field(default_factory=ProgressBuffer, init=False)

    def execute(self, session: SessionFactory) -> Ended:
        """Claim the epoch, run the query, and record the end in the tracker. Raises nothing that a run can meet."""
        with ids.run_scope():
            ids.begin(pipeline=self.request.pipeline_id, run=self.request.run_id)
            return self._execute(session)

    def _execute(self, session: SessionFactory) -> Ended:
        error = None
        try:
            self.retries.call(partial(self._attempt, session))
        except EtlError as raised:
            error = raised
            if not isinstance(error, StopRequestedError):
                log_event(log, logging.ERROR, "run_failed", run=self.request.run_id, exc_info=True)
        return self._finish(error)

    def _attempt(self, session: SessionFactory) -> None:
        """Do what a driver does; again, it is as if the cluster had started the driver again.

        Each attempt takes an epoch of its own: it fences what the one before may have left running, and finishes or
        undoes what that one had decided or prepared.
        """
        request = self.request
        reach("run.before_claim")
        # Whether a claim that fails has taken the next epoch, nobody knows: the old one says nothing any more.
        self.retries.ledger = None
        epoch = self._claim()
        reach("run.after_claim")
        ids.add(epoch=epoch)
        log_event(log, logging.INFO, "run_started", run=request.run_id, pipeline=request.pipeline_id, epoch=epoch)
        ledger = Ledger(self.database, request.tracker_schema, request.pipeline_id, request.run_id, epoch)
        self.retries.ledger = ledger
        try:
            self._run(session, ledger)
        except Exception as raised:
            error = _taken_over(ledger) or _as_etl_error(raised)
            if error is raised:
                raise
            raise error from raised
        finally:
            ledger.close()

    def _claim(self) -> int:
        request = self.request
        with connect(self.database, application_name="etl:control") as conn:
            epoch = claim_epoch(
                conn,
                request.tracker_schema,
                request.pipeline_id,
                request.run_id,
                lock_timeout_ms=request.takeover_ms,
            )
            self.retries.record(conn, request.tracker_schema, request.run_id)
            self._write_progress(conn)
            return epoch

    def _run(self, session: SessionFactory, ledger: Ledger) -> None:
        config = PipelineConfig.from_json(self.request.config)
        require_supported(config)
        with ExitStack() as starting:
            # A JVM that fetches its jars first, or an executor that the cluster has not given yet, is no silent driver.
            starting.enter_context(beating(Heartbeat(ledger, None)))
            self._recover(ledger, config)
            spark = session()
            self.stop.on_jvm_shutdown(spark)
            with jvm_ids(spark, ids.current()) as jvm:
                self._stream(spark, config, ledger, jvm, starting)
        recovery.sweep_own(ledger.connection(), ledger.right, role=config.load.role)
        reach("run.before_end")

    def _stream(
        self, spark: SparkSession, config: PipelineConfig, ledger: Ledger, jvm: JvmIds, starting: ExitStack
    ) -> None:
        flow = Flow.build(spark, config, self.source_secrets)
        flow.source.check()
        copy = build_copy(spark, config, self.copy_secrets)
        if copy is not None:
            copy.check()
            self.retries.answered("publish")
        table = TargetTable(flow, ledger)
        target = table.open()
        checkpoint = Checkpoint(spark, streaming_of(config).checkpoint_location)
        ready = ready_query(ledger, checkpoint, flow, self.request.resume)
        ids.add(query=ready.query_id)
        jvm.set(ids.current())
        with (
            SourceProgress(ready.flow.source, ledger, ready.query_id) as progress,
            ProgressListener(spark, ready.query_id) as listener,
        ):
            commit = BatchCommit(
                spark=spark,
                flow=ready.flow,
                checkpoint=checkpoint,
                query_id=ready.query_id,
                first_batch=ready.first_batch,
                ledger=ledger,
                sink=self._sink(spark, flow, ledger, target, copy),
                target=table,
                stop=self.stop,
                progress=progress,
                on_commit=self.retries.succeeded,
            )
            whose = Whose(ledger.pipeline_id, ready.query_id, ledger.run_id, ledger.epoch)
            kept = ProgressLog(listener, self.progress, whose, ready.flow.source, checkpoint, ledger.schema)
            application = Application.of(spark, streaming_of(config).trigger)
            starting.close()
            try:
                QueryRunner(commit, application, kept).run()
            except Exception:
                # Prepared parts hold locks and slots until somebody sweeps them: better now than with the next run.
                # Where the JVM has died, a thread of ours may still be deciding: then the next run's recovery does it.
                with suppress(EtlError):
                    if not self.stop.in_batch:
                        recovery.sweep_own(ledger.connection(), ledger.right, role=config.load.role)
                raise
            finally:
                spark.streams.resetTerminated()

    @contextmanager
    def _beside(
        self, session: SessionFactory, ledger: Ledger, config: PipelineConfig
    ) -> Iterator[tuple[SparkSession, JvmIds]]:
        """Give the session to what runs beside the pipeline's own query, with a sign of life from the start.

        A driver that is long in coming up is no silent one, whose letters another replay would free.
        """
        with beating(Heartbeat(ledger, None)):
            self._recover(ledger, config)
            spark = session()
        self.stop.on_jvm_shutdown(spark)
        with jvm_ids(spark, ids.current()) as jvm, beating(Heartbeat(ledger, Application.of(spark))):
            yield spark, jvm

    def _recover(self, ledger: Ledger, config: PipelineConfig) -> None:
        recovered = recovery.recover(ledger.connection(), ledger.right, role=config.load.role)
        left_behind = sweep(ledger, config.load.role)
        if left_behind or recovered.finished or recovered.rolled_back:
            log_event(
                log,
                logging.INFO,
                "recovered",
                decided_batches=len(recovered.finished),
                rolled_back=len(recovered.rolled_back),
                staging_tables=len(left_behind),
            )
        reach("run.after_recovery")

    def _sink(
        self, spark: SparkSession, flow: Flow, ledger: Ledger, target: Target, copy: LetterCopy | None
    ) -> PostgresSink:
        load, handling = flow.config.load, flow.config.error_handling
        session = writing_session(ledger, load.role)
        parallelism = spark.sparkContext.defaultParallelism
        plans = Plans(
            ledger,
            target,
            merge_rule(load),
            session,
            dead_letter_limit(load),
            sorts=flow.sorts,
            fail_fast=handling is not None and handling.fail_fast,
            elsewhere=copy is not None,
        )
        publisher = None
        if copy is not None:
            secrets = tuple(value for name, value in self.copy_secrets.items() if is_secret_key(name))
            publisher = LetterPublisher(spark, copy, ledger, session, parallelism, secrets)
        return PostgresSink(plans, parallelism, load.write_parallelism, publisher)

    def _write_progress(self, conn: Connection, *, last: bool = False) -> None:
        request = self.request
        self.progress.write(lambda: conn, request.tracker_schema, request.pipeline_id, last=last)

    def _finish(self, error: EtlError | None) -> Ended:
        exit_code = error.exit_code if error else ExitCode.FINISHED
        record = partial(self._record_end, error, exit_code)
        # A system that is left alone is asked once more, for this.
        again = not isinstance(error, BreakerOpenError | StopRequestedError)
        try:
            result = self.retries.call(record, guarded=False) if again else record()
        except EtlError as unreachable:
            log_event(log, logging.ERROR, "run_end_not_recorded", run=self.request.run_id, exc_info=True)
            return Ended((error or unreachable).exit_code, None, error or unreachable)
        return Ended(exit_code, result, error)

    def _record_end(self, error: EtlError | None, exit_code: ExitCode) -> RunResult:
        request = self.request
        state: EndState = _state(error)
        name = application_name(request.pipeline_id, 0, request.tracker_schema)
        with connect(self.database, application_name=name) as conn:
            self.retries.record(conn, request.tracker_schema, request.run_id)
            # Before the run's end: who waits for that finds all of it.
            self._write_progress(conn, last=True)
            result = summarise_run(conn, request.tracker_schema, request.run_id).model_copy(update={"state": state})
            finish_run(
                conn,
                request.tracker_schema,
                request.run_id,
                state,
                exit_code,
                error=masked(error.to_json()) if error and state != "stopped" else None,
                result=result.model_dump(mode="json"),
            )
            if result.dead_letters or request.replay or request.reprocess:
                _add_up_letters(conn, request)
        log_event(
            log,
            logging.INFO,
            "run_ended",
            run=request.run_id,
            state=state,
            exit_code=int(exit_code),
            batches=result.batches,
            duplicates=result.duplicates,
            rows_in=result.rows.get("source", 0),
            written=result.rows.get("written", 0),
            retries=result.retries,
        )
        return result


def _add_up_letters(conn: Connection, request: RunRequest) -> None:
    whose = owning_pipeline(request.pipeline_id)
    try:
        compact_tally(conn, request.tracker_schema, whose)
    except EtlError:
        # It only makes counting quicker, and a role that may not delete there is none of the run's affairs.
        log.debug("The tally of dead letters could not be added up", exc_info=True)


def _state(error: EtlError | None) -> EndState:
    if error is None:
        return "finished"
    if isinstance(error, FencedError):
        return "fenced"
    return "stopped" if isinstance(error, StopRequestedError) else "failed"


def _taken_over(ledger: Ledger) -> FencedError | None:
    # Whatever a driver stumbles over after a newer run took its place, that is the reason: it ends our sessions, and
    # a connection lost by that must not be retried.
    try:
        ledger.forget_connection()
        ledger.check_fence()
    except FencedError as fenced:
        return fenced
    except EtlError:
        log.debug("The fence could not be asked", exc_info=True)
    return None


def _as_etl_error(error: Exception) -> EtlError:
    if isinstance(error, EtlError):
        return error
    module = type(error).__module__
    return classify(error) if module.startswith(("psycopg", "adbc")) else translate(error)
