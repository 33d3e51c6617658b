"""``SparkSubmitOperator`` whose driver is waited for in the triggerer, by the ledger."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException, TaskDeferralError, TaskDeferralTimeout

from airflow_etl_provider.deferral import deadline, gave_up
from airflow_etl_provider.deferred_run import DeferredRun
from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import ConfigError, EtlError

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

RUN_KEY: Final = "etl_run_id"
"""Where the task's state store has the run that was registered last."""

_LEDGER_SECONDS: Final = 120.0
_AGAIN_SECONDS: Final = 3.0


class DeferrableSubmitOperator(SparkSubmitOperator):
    """What :class:`StreamingPipelineOperator` has in common with every task that lets go of its driver.

    ``execute`` of the base class submits and returns; the job's id is then known, and :meth:`wait_in_triggerer` lets
    go. The task goes on in :meth:`_resume`, also when Airflow itself has ended the wait.

    :param deferrable: in cluster mode, wait for the driver in the triggerer, without a worker's slot. Refused where the
        driver is below the worker, which is why Airflow's ``default_deferrable`` does not count here.
    :param startup_timeout_seconds: of a deferrable task: how long the driver may take to come up after the run's
        registration, the cluster's queue included.
    :param poll_interval: of a deferrable task: seconds at most between two looks; the run's end wakes it at once.
    """

    def __init__(
        self,
        *,
        deferrable: bool = False,
        startup_timeout_seconds: float = 600.0,
        poll_interval: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.startup_timeout_seconds = startup_timeout_seconds
        self.poll_interval = poll_interval
        self._job_id: str | None = None
        self._resumed: DeferredRun | None = None

    def _submit(self, context: Context) -> str:
        """Run spark-submit to its end; return what it said if it failed. Why, the driver has told the ledger."""
        try:
            super().execute(context)
        except FileNotFoundError as error:
            raise ConfigError(
                "spark-submit cannot be started",
                found=f"no '{error.filename}' on the worker's PATH",
                expected="Spark's spark-submit",
                cure="install pyspark where Airflow's worker runs, or put Spark's bin directory on its PATH",
            ) from error
        except (AirflowException, RuntimeError) as error:
            return str(error)
        return ""

    def _run_to_wait_for(self, context: Context, ledger: LedgerHook) -> str | None:
        """Return the run of a driver that a lost worker left running for this task, if it may still commit.

        The Spark provider's stored job id alone does not tell a lost worker from a cleared task: it takes a job that
        succeeded for the task's own and skips. The run's row does; for any other state the stored id is forgotten.
        """
        store = context.get("task_state_store")
        if store is None or not (job := store.get(self.external_id_key)):
            return None
        run_id = store.get(RUN_KEY)
        row = ledger.run(str(run_id)) if run_id else None
        if row and row.is_newest and row.state in ("registered", "running"):
            try:
                if self.is_job_active(self.get_job_status(job, context)):
                    return row.run_id
            except Exception as error:  # noqa: BLE001 - whatever a cluster's client raises: a new run fences the old one
                self.log.warning("No answer about %s, which run %s started: %s", job, row.run_id, error)
        store.delete(self.external_id_key)
        store.delete(self._K8S_DRIVER_STATUS_KEY)
        return None

    def poll_until_complete(self, external_id: JsonValue, context: Context) -> None:
        """Wait for the driver, unless that is the triggerer's."""
        if self.deferrable:
            self._job_id = str(external_id)
        else:
            super().poll_until_complete(external_id, context)

    def wait_in_triggerer(self, context: Context, ledger: LedgerHook, run_id: str, job_id: str) -> None:
        """Let go of the worker until the run has ended.

        :raises TaskDeferred: always. :raises EtlError: the ledger cannot be read.
        """
        from airflow_etl_provider.triggers.ledger import BACKSTOP, SETTLING_SECONDS
        from airflow_etl_provider.triggers.pipeline_run import PipelineRunTrigger

        run = self._submitted_run(ledger, run_id, job_id)
        run.keep(context)
        # From now on a try that begins anew was asked for by somebody: it does not wait for this driver again.
        if (store := context.get("task_state_store")) is not None:
            store.delete(self.external_id_key)
        give_up = deadline(context, self.execution_timeout)
        trigger = PipelineRunTrigger(
            run=run.to_json(),
            startup_timeout_seconds=self.startup_timeout_seconds,
            poll_seconds=self.poll_interval,
            give_up_at=give_up.isoformat() if give_up else None,
            settle_seconds=SETTLING_SECONDS,
        )
        timeout = give_up - datetime.now(UTC) + BACKSTOP if give_up else None
        self.log.info("Run %s goes on as %s; its end is waited for in the triggerer", run_id, job_id)
        self.defer(trigger=trigger, method_name="execute_complete", kwargs={"run": run.to_json()}, timeout=timeout)

    def _submitted_run(self, ledger: LedgerHook, run_id: str, job_id: str) -> DeferredRun:
        # The driver is on its way: a ledger that is away for a moment must not leave it to itself.
        give_up = monotonic() + _LEDGER_SECONDS
        while True:
            try:
                return DeferredRun.of(ledger, run_id, spark_conn_id=self._conn_id, job_id=job_id)
            except EtlError as error:
                if not error.retryable or monotonic() > give_up:
                    raise
                self.log.warning("Asking the ledger again about run %s: %s", run_id, error)
                sleep(_AGAIN_SECONDS)

    def execute_complete(self, context: Context, event: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
        """Go on where the trigger has seen the run's end, or has given it up."""
        return self._resume(context, DeferredRun.from_json(run), gave_up(event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on; also where nobody waits any more: Airflow only says that, and the run is still to be stopped."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout) as error:
            run = DeferredRun.of_task(context)
            if run is None:
                raise
            return self._resume(context, run, error)

    @abstractmethod
    def _resume(self, context: Context, run: DeferredRun, reason: BaseException | None) -> dict[str, Any]:
        """See the run to its end.

        :param reason: why it is not waited for any longer; None when it has ended.
        """
