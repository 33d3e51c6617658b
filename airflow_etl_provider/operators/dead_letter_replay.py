"""The operator that brings dead letters home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from airflow_etl_provider import metrics
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.deferrable_submit import RUN_KEY
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.run_report import RunReport
from airflow_etl_provider.submission import started_by
from airflow_etl_provider.template_values import is_true, names, number_or_none
from spark_jobs.contracts.config import PipelineConfig, require_supported
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.contracts.run_request import RunRequest, RunResult

if TYPE_CHECKING:
    from airflow.sdk import Context

_REPLAY_KEY = "etl_replay"


class DeadLetterReplayOperator(StreamingPipelineOperator):
    """Bring dead letters of a pipeline home: through its transforms into its target, or back to its Kafka topic.

    Each letter exactly once, whatever becomes of worker or driver: a letter's status changes in the transaction that
    writes its row. What fails again waits with its new reason, and is parked after ``max_attempts`` failures. Letters
    that another replay has taken are left alone. A retry takes what is still pending; the letters of the try before
    are given back first. The pipeline may run meanwhile.

    The configuration is that of the pipeline's newest run. The task's result (XCom) is the replay's summary: letters
    taken, come home, failed again and parked, by stage and error class, with samples.

    :param pipeline_id: whose letters they are. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param mode: ``reprocess`` or ``redrive``. (templated)
    :param stages: only these stages; all when empty. (templated)
    :param error_classes: only these error classes. (templated)
    :param since: first failed at this time or later, ISO 8601 with its zone. (templated)
    :param until: first failed before this time. (templated)
    :param letter_ids: only these letters. (templated)
    :param patch: SQL expressions by the column they repair; ``_value`` is the raw record as text. (templated)
    :param limit: most letters that are taken, the oldest first. (templated)
    :param rate: most letters a second. (templated)
    :param max_attempts: failures, the first one included, after which a letter is parked. (templated)
    :param include_parked: take parked letters as well. (templated)
    :param dry_run: do everything, and roll it back; the summary says what would happen. (templated)
    :param not_sent: somebody has looked: what a redrive that died may have sent was not, as far as the topic does not
        say otherwise. (templated)

    Everything else as :class:`StreamingPipelineOperator`.
    """

    template_fields: Sequence[str] = (
        "pipeline_id",
        "ledger_conn_id",
        "mode",
        "stages",
        "error_classes",
        "since",
        "until",
        "letter_ids",
        "patch",
        "limit",
        "rate",
        "max_attempts",
        "not_sent",
        "include_parked",
        "dry_run_only",
        *(f for f in StreamingPipelineOperator.template_fields if f not in ("pipeline", "variables", "resume")),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"patch": "json", "conf": "json"}
    ui_color = "#f4ece8"

    def __init__(
        self,
        *,
        pipeline_id: str,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        mode: str = "reprocess",
        stages: Sequence[str] | str = (),
        error_classes: Sequence[str] | str = (),
        since: str | None = None,
        until: str | None = None,
        letter_ids: Sequence[str] | str = (),
        patch: Mapping[str, str] | None = None,
        limit: int | str | None = None,
        rate: float | str | None = None,
        max_attempts: int | str = 5,
        include_parked: bool | str = False,
        dry_run: bool | str = False,
        not_sent: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline={}, **kwargs)
        self.pipeline_id = pipeline_id
        self.ledger_conn_id = ledger_conn_id
        self.mode = mode
        self.stages = stages
        self.error_classes = error_classes
        self.since = since
        self.until = until
        self.letter_ids = letter_ids
        self.patch = patch
        self.limit = limit
        self.rate = rate
        self.max_attempts = max_attempts
        self.include_parked = include_parked
        # Not `dry_run`: that is a method of every operator.
        self.dry_run_only = dry_run
        self.not_sent = not_sent
        self._request: RunRequest | None = None

    def request(self) -> ReplayRequest:
        """Return the replay that the rendered parameters ask for.

        :raises ConfigError: naming every value that is not valid.
        """
        statuses = ("pending", "parked") if is_true(self.include_parked) else ("pending",)
        letters = LetterFilter.of(
            # A template that renders to native objects makes a number of one.
            pipeline_id=str(self.pipeline_id),
            stages=names(self.stages),
            error_classes=names(self.error_classes),
            since=self.since or None,
            until=self.until or None,
            ids=names(self.letter_ids),
            statuses=statuses,
        )
        return ReplayRequest.of(
            replay_id=uuid4(),
            letters=letters,
            mode=self.mode,
            patch=dict(self.patch or {}),
            limit=number_or_none(self.limit),
            rate=number_or_none(self.rate),
            max_attempts=self.max_attempts,
            dry_run=is_true(self.dry_run_only),
            not_sent=is_true(self.not_sent),
        )

    def _report(self) -> RunReport:
        return RunReport("replay", str(self.pipeline_id))

    def _load(self) -> PipelineConfig:
        self._request = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).replay_request(
            self.request(), started_by="airflow"
        )
        config = PipelineConfig.from_json(self._request.config)
        require_supported(config)
        return config

    def _register(self, context: Context, config: PipelineConfig, ledger: LedgerHook, run_id: str) -> str:  # noqa: ARG002
        if self._request is None or self._request.replay is None:
            raise EtlError("A replay is registered after it was loaded")
        request = self._request.model_copy(update={"run_id": run_id, "started_by": started_by(context)})
        replay_id = str(self._request.replay.replay_id)
        store = context.get("task_state_store")
        if store is not None:
            self._give_up(store.get(_REPLAY_KEY), ledger)
        ledger.register(request)
        if store is not None:
            store.set(_REPLAY_KEY, f"{request.run_id} {replay_id}")
            store.set(RUN_KEY, request.run_id)
        self.log.info("Registered replay %s of pipeline %s as run %s", replay_id, self.pipeline_id, request.run_id)
        return request.run_id

    def _give_up(self, before: object, ledger: LedgerHook) -> None:
        # A lost driver of the try before holds letters, and may not commit them any more.
        if not before:
            return
        run_id, replay_id = str(before).split()
        count = ledger.give_up_replay(run_id, replay_id)
        if count:
            self.log.info("Gave back %d dead letters of replay %s, the try before", count, replay_id)

    def _outcome(self, ledger: LedgerHook, result: RunResult) -> dict[str, Any]:
        summary = ledger.replay_summary(UUID(result.pipeline_id.rpartition("/")[2]))
        if summary is None:
            raise EtlError(
                f"Run {result.run_id} has finished and left no summary of its replay",
                cure="look at `etl-pipeline dead-letters replays`",
            )
        self.log.info(
            "%s: %d dead letters, %d came home, %d failed again, %d parked",
            "Dry run" if summary.dry_run else "Replay",
            summary.taken,
            summary.replayed,
            summary.failed,
            summary.parked,
        )
        if summary.unsendable:
            self.log.warning("%d letters hold no record that could be sent, and were left", summary.unsendable)
        if summary.perhaps_sent:
            self.log.warning(
                "%d letters were left: a redrive that died may have sent them, which only a redrive can tell",
                summary.perhaps_sent,
            )
        if not summary.dry_run:
            for outcome in ("replayed", "failed", "parked"):
                number = getattr(summary, outcome)
                metrics.count(metrics.REPLAY_LETTERS, number, pipeline_id=str(self.pipeline_id), outcome=outcome)
        return summary.to_json()
