"""The operator that removes old rows from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors, exception_for_many
from airflow_etl_provider.template_values import is_true, names, number_or_none
from spark_jobs.contracts.cleanup import CleanupReport, CleanupRequest

if TYPE_CHECKING:
    from airflow.sdk import Context


class BatchTrackerCleanupOperator(BaseOperator):
    """Remove old micro-batches from the ledger, and what else grows there, without forgetting what a restart needs.

    A micro-batch goes when it is older than ``days`` and not among the newest ``keep_batches`` of its query: both must
    agree. Never any of a query with a decided micro-batch that waits for its end, and never a dead letter that waits.
    Rows go in small transactions that no pipeline waits for; a task that is killed goes on at its next try, and two at
    once share the work. What went of each query stays written down in ``batch_retention``. What cannot be removed of
    one pipeline fails the task after all others were cleaned; the report is then in the XCom ``cleanup``.

    The result (XCom): ``queries`` (what went of each, and why the rest stays), ``by_pipeline``, ``totals`` and
    ``problems`` (empty).

    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param pipelines: only these, a list or a text with commas; all when empty. (templated)
    :param days: age in days from which a micro-batch may go, by the server's clock. (templated)
    :param keep_batches: newest micro-batches of each query that stay; at least 200. (templated)
    :param letter_days: age in days from which replayed and discarded dead letters, and ended replays, may go; they
        stay when None. (templated)
    :param history_days: the same for runs, their retries, reprocesses, and changes of circuit breakers.
        (templated)
    :param batch_size: most rows of one transaction. (templated)
    :param pause_seconds: between two transactions. (templated)
    :param dry_run: count what would go, and remove nothing. (templated)
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :raises AirflowFailException: the ledger is missing or of another version, a parameter is not valid, or a pipeline
        is unknown; or something of a pipeline cannot be removed, and trying again does not help.
    :raises AirflowException: the same, where it may.
    """

    template_fields: Sequence[str] = (
        "ledger_conn_id",
        "pipelines",
        "days",
        "keep_batches",
        "letter_days",
        "history_days",
        "batch_size",
        "pause_seconds",
        "dry_run_only",
        "tracker_schema",
    )
    ui_color = "#e8f0ec"

    def __init__(
        self,
        *,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        pipelines: Sequence[str] | str = (),
        days: float | str = 30,
        keep_batches: int | str = 1_000,
        letter_days: float | str | None = 365,
        history_days: float | str | None = 90,
        batch_size: int | str = 1_000,
        pause_seconds: float | str = 0.05,
        dry_run: bool | str = False,
        tracker_schema: str = "etl",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ledger_conn_id = ledger_conn_id
        self.pipelines = pipelines
        self.days = days
        self.keep_batches = keep_batches
        self.letter_days = letter_days
        self.history_days = history_days
        self.batch_size = batch_size
        self.pause_seconds = pause_seconds
        # Not `dry_run`: that is a method of every operator.
        self.dry_run_only = dry_run
        self.tracker_schema = tracker_schema

    def request(self) -> CleanupRequest:
        """Return the cleanup that the rendered parameters ask for.

        :raises ConfigError: naming every value that is not valid.
        """
        return CleanupRequest.of(
            pipelines=names(self.pipelines),
            days=self.days,
            keep_batches=self.keep_batches,
            letter_days=number_or_none(self.letter_days),
            history_days=number_or_none(self.history_days),
            batch_size=self.batch_size,
            pause_seconds=self.pause_seconds,
            dry_run=is_true(self.dry_run_only),
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Remove, or count, and return the report."""
        with airflow_errors():
            report = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).clean(self.request())
        self._tell(report)
        if report.problems:
            # A failed task has no result of its own: what was done is kept beside it.
            context["ti"].xcom_push(key="cleanup", value=report.to_json())
            raise exception_for_many("Not everything could be cleaned", report.problems)
        return report.to_json()

    def _tell(self, report: CleanupReport) -> None:
        verb = "would go" if report.dry_run else "removed"
        for pipeline_id, counts in report.by_pipeline.items():
            self.log.info("%s: %s %s", pipeline_id, verb, _listed(counts))
        for query in report.queries:
            if query.why in ("unfinished", "busy"):
                self.log.warning(
                    "%s, query %s: old micro-batches stay: %s", query.pipeline_id, query.query_id, _WHY[query.why]
                )
        before = report.before.isoformat(timespec="seconds")
        self.log.info("Of all pipelines %s (micro-batches from before %s): %s", verb, before, _listed(report.totals))


_WHY = {
    "unfinished": "one that was decided waits for its end (OrphanCleanupOperator, or the pipeline's next run)",
    "busy": "another session is at them; the next cleanup takes them",
}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in counts.items()) or "nothing"
