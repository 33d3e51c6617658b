"""The operator that does committed micro-batches again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.deferrable_submit import RUN_KEY
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.run_report import RunReport
from airflow_etl_provider.submission import started_by
from airflow_etl_provider.template_values import is_true
from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.reprocess_batches import ReprocessRequest
from spark_jobs.contracts.run_request import RunRequest, RunResult

if TYPE_CHECKING:
    from airflow.sdk import Context

_REPROCESS_KEY = "etl_reprocess"


class ReprocessOperator(StreamingPipelineOperator):
    """Read committed micro-batches of a pipeline again, and put their rows in the place of those that they wrote.

    By the configuration of the pipeline's newest run. Each micro-batch is one transaction: its old rows, its new rows,
    its dead letters and its row in the ledger. With ``writeMode`` ``append`` the table needs ``load.batchColumn``; with
    ``upsert`` rows are merged as ever. What could lose a row, or have one twice, is refused, and the task fails with
    the reason. The pipeline may run meanwhile.

    A retry goes on where the try before stopped. The task's result (XCom) is the summary: rows and dead letters before
    and after, of the first micro-batches one by one.

    :param pipeline_id: whose micro-batches they are. (templated)
    :param batches: first and last batch id, such as ``"12-40"``, or one. (templated)
    :param since: with ``until`` instead of ``batches``: micro-batches that touch the time from then on, ISO 8601 with
        its zone. (templated)
    :param until: before this time. (templated)
    :param times: ``event_time`` of the rows, or ``commit_time`` of the micro-batches. (templated)
    :param offsets: instead: those that have read these records of Kafka, ``topic/partition:first-last``. (templated)
    :param query_id: of which query; the one that was used last unless given. (templated)
    :param dry_run: do everything, and roll it back; the summary says what would happen. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)

    Everything else as :class:`StreamingPipelineOperator`.
    """

    template_fields: Sequence[str] = (
        "pipeline_id",
        "batches",
        "since",
        "until",
        "times",
        "offsets",
        "query_id",
        "dry_run_only",
        "ledger_conn_id",
        *(f for f in StreamingPipelineOperator.template_fields if f not in ("pipeline", "variables", "resume")),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"conf": "json"}
    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        pipeline_id: str,
        batches: str | int | None = None,
        since: str | None = None,
        until: str | None = None,
        times: str = "event_time",
        offsets: str | None = None,
        query_id: str | None = None,
        dry_run: bool | str = False,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline={}, **kwargs)
        self.pipeline_id = pipeline_id
        self.batches = batches
        self.since = since
        self.until = until
        self.times = times
        self.offsets = offsets
        self.query_id = query_id
        # Not `dry_run`: that is a method of every operator.
        self.dry_run_only = dry_run
        self.ledger_conn_id = ledger_conn_id
        self._request: RunRequest | None = None

    def request(self) -> ReprocessRequest:
        """Return what the rendered parameters ask for.

        :raises ConfigError: naming every value that is not valid.
        """
        return ReprocessRequest.of(
            reprocess_id=uuid4(),
            # A template that renders to native objects makes a number of one.
            pipeline_id=str(self.pipeline_id),
            batches=self.batches,
            since=self.since or None,
            until=self.until or None,
            times=self.times,
            offsets=self.offsets or None,
            query_id=self.query_id or None,
            dry_run=is_true(self.dry_run_only),
        )

    def _report(self) -> RunReport:
        return RunReport("reprocess", str(self.pipeline_id))

    def _load(self) -> PipelineConfig:
        ledger = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema)
        self._request = ledger.reprocess_request(self.request(), started_by="airflow")
        config = PipelineConfig.from_json(self._request.config)
        require_supported(config)
        return config

    def _register(self, context: Context, config: PipelineConfig, ledger: LedgerHook, run_id: str) -> str:  # noqa: ARG002
        if self._request is None or self._request.reprocess is None:
            raise EtlError("A reprocess is registered after it was loaded")
        store = context.get("task_state_store")
        wanted = self._request.reprocess
        if store is not None:
            wanted = self._going_on(store.get(_REPROCESS_KEY), wanted, ledger)
        request = self._request.model_copy(
            update={
                "run_id": run_id,
                "pipeline_id": wanted.own_pipeline_id,
                "reprocess": wanted,
                "started_by": started_by(context),
            }
        )
        ledger.register(request)
        if store is not None:
            store.set(_REPROCESS_KEY, json.dumps({"id": str(wanted.reprocess_id), "choice": wanted.choice}))
            store.set(RUN_KEY, run_id)
        self.log.info("Registered reprocess %s of pipeline %s as run %s", wanted.reprocess_id, self.pipeline_id, run_id)
        return run_id

    def _going_on(self, before: object, wanted: ReprocessRequest, ledger: LedgerHook) -> ReprocessRequest:
        # What the try before has committed is not done a second time; its driver is fenced by the registration.
        if not before:
            return wanted
        kept = json.loads(str(before))
        if kept["choice"] != wanted.choice or ledger.reprocess_summary(UUID(kept["id"])) is not None:
            return wanted
        self.log.info("Going on with reprocess %s, which the try before began", kept["id"])
        return wanted.model_copy(update={"reprocess_id": UUID(kept["id"])})

    def _outcome(self, ledger: LedgerHook, result: RunResult) -> dict[str, Any]:
        summary = ledger.reprocess_summary(UUID(result.pipeline_id.rpartition("/")[2]))
        if summary is None:
            raise EtlError(
                f"Run {result.run_id} has finished and left no summary of what it did again",
                cure="look at the table reprocess of the ledger",
            )
        self.log.info(
            "%s: %d micro-batches, %d rows before, %d rows now, %d dead letters before, %d now",
            "Dry run" if summary.dry_run else "Reprocessed",
            summary.batches,
            summary.rows_before,
            summary.rows_after,
            summary.letters_before,
            summary.letters_after,
        )
        return summary.to_json()
