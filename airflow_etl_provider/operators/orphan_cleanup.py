"""The operator that clears away what drivers that are gone have left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors, exception_for
from airflow_etl_provider.template_values import is_true, names, number_or_none
from spark_jobs.contracts.cleanup import SweepReport, SweepRequest

if TYPE_CHECKING:
    from airflow.sdk import Context


class OrphanCleanupOperator(BaseOperator):
    """Clear away what drivers that are gone have left, of all pipelines, as each pipeline's next run would.

    Micro-batches that were decided are finished, other prepared transactions of this project are rolled back, staging
    tables are dropped, the letters of abandoned replays wait again, and old progress expires. A driver counts as gone
    when it has ended, or after ``older_than_minutes`` without a sign of life; it loses its right to commit first. What
    a driver that is alive still needs stays, and so does everything that is not of this project.

    The result (XCom): ``orphans`` (each with what was done, or why it stays) and ``problems``.

    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param pipelines: only these, a list or a text with commas; all when empty. (templated)
    :param older_than_minutes: how long a prepared transaction must have waited and a driver been silent; at least 2.
        (templated)
    :param progress_days: age from which progress expires; all stays when None. (templated)
    :param role: who prepared the transactions and owns the tables; each pipeline's ``load.role`` when None. (templated)
    :param dry_run: say what there is, and leave it. (templated)
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :raises AirflowFailException: as :class:`~airflow_etl_provider.operators.batch_tracker_cleanup.\
BatchTrackerCleanupOperator`; or, after all else was cleared away, for what needs a person, such as a part of a decided
        batch that somebody rolled back.
    :raises AirflowException: after all else was cleared away, for what passes.
    """

    template_fields: Sequence[str] = (
        "ledger_conn_id",
        "pipelines",
        "older_than_minutes",
        "progress_days",
        "role",
        "dry_run_only",
        "tracker_schema",
    )
    ui_color = "#e8f0ec"

    def __init__(
        self,
        *,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        pipelines: Sequence[str] | str = (),
        older_than_minutes: float | str = 15,
        progress_days: float | str | None = 90,
        role: str | None = None,
        dry_run: bool | str = False,
        tracker_schema: str = "etl",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ledger_conn_id = ledger_conn_id
        self.pipelines = pipelines
        self.older_than_minutes = older_than_minutes
        self.progress_days = progress_days
        self.role = role
        # Not `dry_run`: that is a method of every operator.
        self.dry_run_only = dry_run
        self.tracker_schema = tracker_schema

    def request(self) -> SweepRequest:
        """Return the sweep that the rendered parameters ask for.

        :raises ConfigError: naming every value that is not valid.
        """
        return SweepRequest.of(
            pipelines=names(self.pipelines),
            older_than_minutes=self.older_than_minutes,
            progress_days=number_or_none(self.progress_days),
            role=self.role or None,
            dry_run=is_true(self.dry_run_only),
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Clear away, or look, and return the report."""
        with airflow_errors():
            report = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).sweep_orphans(self.request())
        self._tell(report)
        if report.problems:
            self._fail(context, report)
        return report.to_json()

    def _tell(self, report: SweepReport) -> None:
        for orphan in report.orphans:
            done = f"would be {orphan.state}" if report.dry_run and orphan.state != "kept" else orphan.state
            why = f": {orphan.why}" if orphan.why else ""
            many = {"replay": f", {orphan.letters:,} dead letters", "progress": f", {orphan.rows:,} rows"}
            about = (orphan.kind, orphan.name, done, many.get(orphan.kind, ""), why)
            self.log.info("%s: %s %s %s%s%s", orphan.pipeline_id, *about)
        self.log.info("%d orphans, %d kept", len(report.cleared), len(report.orphans) - len(report.cleared))

    def _fail(self, context: Context, report: SweepReport) -> None:
        # A failed task has no result of its own: what was done is kept beside it.
        context["ti"].xcom_push(key="sweep", value=report.to_json())
        for pipeline_id, error in report.problems.items():
            self.log.error("%s: %s", pipeline_id, error["what"])
        # What needs a person comes first: repeating would not help it.
        raise exception_for(min(report.problems.values(), key=lambda error: bool(error["retryable"])))
