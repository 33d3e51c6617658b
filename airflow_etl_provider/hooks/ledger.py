"""The ledger in the target's PostgreSQL: registers runs before they are submitted, reads what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow.sdk import BaseHook

from spark_jobs.contracts.errors import LedgerMissingError

# Every DAG file with one of this package's operators or sensors imports this module, and asks nothing of a ledger: what
# an answer needs is imported with the question, psycopg and the models with it.
if TYPE_CHECKING:
    from spark_jobs.contracts.audit.files import OpenFiles
    from spark_jobs.contracts.audit.report import AuditReport
    from spark_jobs.contracts.cleanup import CleanupReport, CleanupRequest, SweepReport, SweepRequest
    from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
    from spark_jobs.contracts.credentials import DatabaseConnection
    from spark_jobs.contracts.replay import LetterCount, ReplayRequest, ReplaySummary
    from spark_jobs.contracts.reprocess_batches import ReprocessRequest, ReprocessSummary
    from spark_jobs.contracts.run_figures import RunFigures
    from spark_jobs.contracts.run_request import RunRequest, RunResult
    from spark_jobs.contracts.tracker.breakers import PostgresStorage
    from spark_jobs.contracts.tracker.connect import Connection
    from spark_jobs.contracts.tracker.run_state import RunLife
    from spark_jobs.contracts.watch.condition import Condition, Seen
    from spark_jobs.contracts.watch.health import Finding, Thresholds

_SESSION_NAME = "airflow-etl-provider"
_READ_RUN = (
    "SELECT r.state, r.exit_code, r.error, p.newest_run_id = r.run_id FROM {schema}.pipeline_run r "
    "JOIN {schema}.pipeline p USING (pipeline_id) WHERE r.run_id = %(run_id)s"
)


@dataclass(frozen=True)
class RunRow:
    """How a run stands, as the driver last wrote it."""

    run_id: str
    state: str
    exit_code: int | None
    error: dict[str, Any] | None
    is_newest: bool
    """Whether the run may still commit: no newer run of the pipeline is registered."""


class LedgerHook(BaseHook):
    """The ledger beside a pipeline's target table.

    :param conn_id: Airflow connection to PostgreSQL.
    :param schema: PostgreSQL schema of the ledger's tables.
    :param connection_params: what a pipeline's ``load.database_settings`` add to the connection (host, database, …).
    """

    conn_name_attr = "conn_id"
    default_conn_name = "warehouse"
    conn_type = "postgres"
    hook_name = "Pipeline ledger"

    def __init__(
        self,
        conn_id: str = default_conn_name,
        *,
        schema: str = "etl",
        connection_params: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.schema = schema
        self.connection_params = dict(connection_params or {})

    @cached_property
    def database(self) -> DatabaseConnection:
        """How to reach the database; looked up in Airflow once.

        :raises ConnectionMissingError: Airflow has no such connection.
        """
        from airflow_etl_provider.credentials import connection
        from spark_jobs.contracts.credentials import DatabaseConnection

        value = connection(self.conn_id, purpose="load.credentialId").as_json()
        return DatabaseConnection.from_airflow(self.conn_id, value).completed(self.connection_params)

    def get_conn(self) -> Connection:
        """Return a new autocommit connection that works through a pooler.

        :raises DatabaseUnreachableError: the server does not answer or refuses the login.
        """
        from spark_jobs.contracts.tracker.connect import connect

        return connect(self.database, application_name=_SESSION_NAME)

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """Yield a connection to a ledger of this version, and close it.

        :raises LedgerVersionError: the ledger is missing, or of another version.
        """
        from spark_jobs.contracts.tracker.migrate import require_version

        with closing(self.get_conn()) as conn:
            require_version(conn, self.schema)
            yield conn

    def register(self, request: RunRequest) -> None:
        """Make the request's run the pipeline's newest: no older driver commits from then on.

        The ledger's tables are made or upgraded first.
        """
        from spark_jobs.contracts.tracker.runs import register_run

        with self._migrated() as conn:
            register_run(conn, self.schema, request)

    def breaker_storage(
        self, system: str, settings: CircuitBreaker, *, run_id: str, pipeline_id: str
    ) -> PostgresStorage:
        """Return where the circuit breaker of a system is kept; the ledger's tables are made or upgraded first."""
        from spark_jobs.contracts.tracker.breakers import PostgresStorage
        from spark_jobs.contracts.tracker.migrate import migrate

        def session() -> Connection:
            conn = self.get_conn()
            try:
                migrate(conn, self.schema)
            except BaseException:
                conn.close()
                raise
            return conn

        seconds = settings.reset_timeout_seconds
        return PostgresStorage(
            session, self.schema, system, run_id=run_id, pipeline_id=pipeline_id, reset_seconds=seconds
        )

    def retire(self, run_id: str) -> None:
        """Take the run's right to commit away, in about two seconds or with an error."""
        from spark_jobs.contracts.tracker.connect import connect
        from spark_jobs.contracts.tracker.retire import retire_run

        with closing(connect(self.database, application_name=_SESSION_NAME, connect_timeout=2)) as conn:
            retire_run(conn, self.schema, run_id)

    def run(self, run_id: str) -> RunRow | None:
        """Return how the run stands, or None when the ledger does not know it."""
        from spark_jobs.contracts.tracker.connect import classified, query

        with closing(self.get_conn()) as conn, classified("Reading the run's row"):
            row = query(conn, self.schema, _READ_RUN, {"run_id": run_id}).fetchone()
        return RunRow(run_id, row[0], row[1], row[2], bool(row[3])) if row else None

    def request(self, run_id: str) -> RunRequest:
        """Return what the run was registered with."""
        from spark_jobs.contracts.tracker.runs import read_request

        with closing(self.get_conn()) as conn:
            return read_request(conn, self.schema, run_id)

    def newest_run(self, pipeline_id: str) -> RunLife:
        """Return how a pipeline's newest run is; ``never_started`` where the ledger knows none.

        :raises LedgerVersionError: the ledger is missing, or of another version.
        """
        from spark_jobs.contracts.tracker.run_state import newest_run_life

        with self.session() as conn:
            return newest_run_life(conn, self.schema, pipeline_id)

    def replay_request(self, replay: ReplayRequest, *, started_by: str) -> RunRequest:
        """Return the request of a run that replays, by the configuration of the pipeline's newest run.

        The ledger's tables are made or upgraded first.

        :raises ConfigError: no run of the pipeline is known.
        """
        from spark_jobs.contracts.tracker.replays import replay_request

        with self._migrated() as conn:
            return replay_request(conn, self.schema, replay, started_by=started_by)

    def reprocess_request(self, wanted: ReprocessRequest, *, started_by: str) -> RunRequest:
        """Return the request of a run that reprocesses, as :meth:`replay_request` does."""
        from spark_jobs.contracts.tracker.reprocess_batches import reprocess_request

        with self._migrated() as conn:
            return reprocess_request(conn, self.schema, wanted, started_by=started_by)

    def reprocess_summary(self, reprocess_id: UUID) -> ReprocessSummary | None:
        """Return what came of a reprocess; None while it has not ended."""
        from spark_jobs.contracts.tracker.reprocess_batches import read_reprocess_summary

        with closing(self.get_conn()) as conn:
            return read_reprocess_summary(conn, self.schema, reprocess_id)

    def give_up_replay(self, run_id: str, replay_id: str) -> int:
        """Take the right to commit from a replay whose driver was lost, and give its letters back; return how many."""
        from spark_jobs.contracts.tracker.replays import release

        self.retire(run_id)
        with closing(self.get_conn()) as conn:
            return release(conn, self.schema, [UUID(replay_id)])

    def replay_summary(self, replay_id: UUID) -> ReplaySummary | None:
        """Return what came of a replay; None while it has not ended."""
        from spark_jobs.contracts.tracker.replays import read_summary

        with closing(self.get_conn()) as conn:
            return read_summary(conn, self.schema, replay_id)

    def count_letters(
        self,
        pipeline_id: str | None,
        *,
        statuses: Sequence[str] = (),
        stages: Sequence[str] = (),
        error_classes: Sequence[str] = (),
    ) -> list[LetterCount]:
        """Return how many dead letters there are of each kind."""
        from spark_jobs.contracts.tracker.letters import count_letters

        with self.session() as conn:
            return count_letters(
                conn, self.schema, pipeline_id, statuses=statuses, stages=stages, error_classes=error_classes
            )

    def clean(self, request: CleanupRequest) -> CleanupReport:
        """Remove old rows of the ledger, or count them.

        :raises LedgerVersionError: the ledger is missing or of another version.
        :raises ConfigError: a pipeline that it does not know.
        """
        from spark_jobs.contracts.tracker.cleanup import clean

        with self.session() as conn:
            return clean(conn, self.schema, request)

    def sweep_orphans(self, request: SweepRequest) -> SweepReport:
        """Clear away what drivers that are gone have left, or say what there is.

        :raises LedgerVersionError: the ledger is missing or of another version.
        :raises ConfigError: a pipeline that it does not know.
        """
        from spark_jobs.contracts.tracker.orphans import sweep_orphans

        with self.session() as conn:
            return sweep_orphans(conn, self.schema, request)

    def look(self, condition: Condition) -> Seen:
        """Look once whether a condition holds.

        :raises LedgerVersionError: the ledger is missing, or of another version.
        :raises EtlError: see :meth:`~spark_jobs.contracts.watch.condition.Condition.look`.
        """
        from airflow_etl_provider.credentials import source_connection
        from spark_jobs.contracts.watch.condition import LedgerView

        try:
            with self.session() as conn:
                return condition.look(LedgerView(conn, self.schema, source_connection))
        except LedgerMissingError as missing:
            return condition.without_ledger(missing)

    def pipelines(self) -> list[str]:
        """Return the ids of all pipelines that were ever started."""
        from spark_jobs.contracts.watch.condition import LedgerView
        from spark_jobs.contracts.watch.health import pipelines

        with self.session() as conn:
            return pipelines(LedgerView(conn, self.schema))

    def examine(self, names: Sequence[str], thresholds: Thresholds) -> list[Finding]:
        """Return what is wrong with these pipelines.

        :raises LedgerVersionError: the ledger is missing, or of another version.
        :raises ConfigError: a pipeline that it does not know.
        """
        from airflow_etl_provider.credentials import source_connection
        from spark_jobs.contracts.watch.condition import LedgerView
        from spark_jobs.contracts.watch.health import examine

        with self.session() as conn:
            return examine(LedgerView(conn, self.schema, source_connection), names, thresholds)

    def audit(self, pipeline: str, open_files: OpenFiles, *, checkpoint: str | None = None) -> AuditReport:
        """Compare a pipeline's checkpoint with ledger and source; see :func:`~spark_jobs.contracts.audit.audit.audit`.

        :raises LedgerVersionError: the ledger is missing, or of another version.
        :raises ConfigError: the ledger does not know the pipeline.
        """
        from airflow_etl_provider.credentials import source_connection
        from spark_jobs.contracts.audit.audit import audit
        from spark_jobs.contracts.watch.condition import LedgerView

        with self.session() as conn:
            view = LedgerView(conn, self.schema, source_connection)
            return audit(view, pipeline, open_files, checkpoint=checkpoint)

    def figures(self, run_id: str) -> RunFigures:
        """Return what a run's metrics are made of: attempts and waits, dead letters, circuit breakers."""
        from spark_jobs.contracts.tracker.connect import connect
        from spark_jobs.contracts.tracker.figures import run_figures

        with (
            closing(connect(self.database, application_name=_SESSION_NAME, connect_timeout=2)) as conn,
            conn.transaction(),
        ):
            # Nobody waits for a metric.
            conn.execute("SET LOCAL statement_timeout = '5s'")
            return run_figures(conn, self.schema, run_id)

    def result(self, run_id: str) -> RunResult:
        """Return what the run did: batches, rows by kind, offsets, watermark, duration, the ledger's verdict."""
        from spark_jobs.contracts.tracker.queries import summarise_run

        with closing(self.get_conn()) as conn:
            return summarise_run(conn, self.schema, run_id)

    @contextmanager
    def _migrated(self) -> Iterator[Connection]:
        """Yield a session with a ledger that was made, or upgraded, where it was needed."""
        from spark_jobs.contracts.tracker.migrate import migrate

        with closing(self.get_conn()) as conn:
            migrate(conn, self.schema)
            yield conn
