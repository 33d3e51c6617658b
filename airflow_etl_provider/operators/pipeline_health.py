"""The operator that finds out what is wrong with pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors
from airflow_etl_provider.template_values import names

if TYPE_CHECKING:
    from airflow.sdk import Context


class PipelineHealthOperator(BaseOperator):
    """Look once at how pipelines are, and return what is wrong; it does not fail for it.

    Looks at the newest run (failed, its driver fell silent or did not come up within an hour), at the age of the last
    commit, gaps, the books, new dead letters, and for Kafka at the lag and at what the broker will delete. One check
    that cannot be made (a broker that does not answer) is a finding of the state ``unknown``, and the others are made.

    The result (XCom): a list of ``{"pipeline", "check", "state", "message"}``.

    :param pipelines: ids, a list or a text with commas. (templated)
    :param thresholds: fields of :class:`~spark_jobs.contracts.watch.health.Thresholds`; ages are texts such as
        ``2 hours``. A pipeline's ``healthConfig`` wins. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :raises AirflowFailException: the ledger is missing or of another version, a pipeline is unknown, or a threshold is
        not valid.
    """

    template_fields: Sequence[str] = ("pipelines", "thresholds", "ledger_conn_id", "tracker_schema")
    ui_color = "#e8f0f4"

    def __init__(
        self,
        *,
        pipelines: Sequence[str] | str,
        thresholds: Mapping[str, Any],
        ledger_conn_id: str = LedgerHook.default_conn_name,
        tracker_schema: str = "etl",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipelines = pipelines
        self.thresholds = thresholds
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema

    def execute(self, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002 - Airflow's signature
        """Look."""
        from spark_jobs.contracts.watch.health import Thresholds

        with airflow_errors():
            wanted, thresholds = names(self.pipelines), Thresholds.of(**self.thresholds)
            found = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).examine(wanted, thresholds)
        for finding in found:
            self.log.warning("%s %s: %s", finding.check, finding.state, finding.message)
        self.log.info("%d pipelines, %d findings", len(wanted), len(found))
        return [finding.model_dump() for finding in found]
