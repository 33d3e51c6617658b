"""The operator that compares a pipeline's checkpoint with its ledger and its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.checkpoint_storage import CheckpointStorage
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors
from airflow_etl_provider.template_values import names
from spark_jobs.contracts.audit.report import BAD, AuditReport, failure, states

if TYPE_CHECKING:
    from airflow.sdk import Context

# Plain texts: a template field is stored with the DAG.
_NEEDS_SOMEBODY = tuple(state.value for state in BAD)


class CheckpointAuditOperator(BaseOperator):
    """Compare a pipeline's checkpoint, ledger and source, and say what the next run will meet, and what to do.

    Needs no Spark, and changes nothing. A run may go on meanwhile: what it is at is not judged then.

    The result (XCom): ``state`` (the worst of what was found, else ``consistent``), ``findings`` (each with ``state``,
    ``found``, ``expected``, ``advice`` and ``passing``), how far checkpoint and ledger are, and ``not_judged``. Where
    the task fails, the same is in the XCom ``audit``.

    :param pipeline: its id. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :param checkpoint: where it is, as seen from the worker; None: where the query that was used last had it.
        (templated)
    :param storage_conn_id: Airflow connection to the object store that it is in; the provider's default when None.
        (templated)
    :param fail_on: states that fail the task, a list or a text with commas; all that needs somebody unless given. See
        :class:`~spark_jobs.contracts.audit.report.State`. (templated)
    :raises AirflowFailException: something of the states in ``fail_on`` was found; the ledger is missing or of another
        version, the pipeline is unknown, or a name in ``fail_on`` is.
    :raises AirflowException: all of it may pass by itself, such as a broker that does not answer; or the database does
        not.
    """

    template_fields: Sequence[str] = (
        "pipeline",
        "ledger_conn_id",
        "tracker_schema",
        "checkpoint",
        "storage_conn_id",
        "fail_on",
    )
    ui_color = "#e8f0f4"

    def __init__(
        self,
        *,
        pipeline: str,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        tracker_schema: str = "etl",
        checkpoint: str | None = None,
        storage_conn_id: str | None = None,
        fail_on: Sequence[str] | str = _NEEDS_SOMEBODY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema
        self.checkpoint = checkpoint
        self.storage_conn_id = storage_conn_id
        self.fail_on = fail_on

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare, and return the report."""
        with airflow_errors():
            fail_on = states(names(self.fail_on))
            report = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).audit(
                self.pipeline, CheckpointStorage(self.storage_conn_id or None), checkpoint=self.checkpoint or None
            )
            self._tell(report)
            if error := failure([report], fail_on):
                # A failed task has no result of its own.
                context["ti"].xcom_push(key="audit", value=report.to_json())
                raise error
        return report.to_json()

    def _tell(self, report: AuditReport) -> None:
        self.log.info(
            "%s: %s. Checkpoint %s: planned %s, committed %s; ledger %s; %d micro-batches and %d files compared",
            report.pipeline,
            report.state,
            report.checkpoint,
            report.last_planned,
            report.last_committed,
            report.last_in_ledger,
            report.compared_batches,
            report.compared_files,
        )
        for one in report.findings:
            self.log.warning("%s: %s. Expected: %s. What to do: %s", one.state, one.found, one.expected, one.advice)
        for text in report.not_judged:
            self.log.info("Not judged: %s", text)
