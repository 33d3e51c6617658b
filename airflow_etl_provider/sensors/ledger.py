"""What all sensors of the ledger have in common: poke or wait in the triggerer, and say what was seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors
from spark_jobs.contracts.errors import EtlError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spark_jobs.contracts.watch.condition import Condition, Seen

_LEAST_POLL_SECONDS = 1.0


class LedgerSensor(BaseSensorOperator):
    """Wait for a condition over a pipeline's ledger.

    Each look is in the task's log, and a timeout says what was seen last. A database, or a source, that does not answer
    is asked again. A condition that can never hold fails the
    task at once, without retries; ``soft_fail`` skips it instead. The result (XCom) is what was seen.

    :param pipeline: the pipeline's id. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL.
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :param wait_for_first_run: whether to wait for a pipeline that has never run; else it is an error, as a name that is
        spelled wrongly would be waited for in vain.
    :param deferrable: wait in the triggerer, without a worker's slot, and be woken by the pipeline's commits; otherwise
        look every ``poke_interval``.
    :param end_from_trigger: of a deferrable sensor: succeed from the triggerer, without a worker; Airflow then hands
        the XCom on as JSON text.
    :raises AirflowFailException: the pipeline is unknown, the ledger is missing or of another version, the parameters
        are not valid, or the condition can never hold.
    """

    template_fields: Sequence[str] = ("pipeline", "tracker_schema")
    ui_color = "#e8f0f4"

    def __init__(
        self,
        *,
        pipeline: str,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        tracker_schema: str = "etl",
        wait_for_first_run: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        end_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema
        self.wait_for_first_run = wait_for_first_run
        self.deferrable = deferrable
        self.end_from_trigger = end_from_trigger
        self._last_message = ""

    @abstractmethod
    def condition(self) -> Condition:
        """Return what is waited for, from the rendered parameters.

        :raises ConfigError: they are not valid.
        """

    def execute(self, context: Context) -> Any:
        """Look once; then poke, or wait in the triggerer."""
        if self.deferrable:
            seen = self._first_look()
            return seen.value if seen.done else self._defer()
        try:
            return super().execute(context)
        except AirflowSensorTimeout as timeout:
            raise AirflowSensorTimeout(f"{timeout} Last seen: {self._last_message}") from timeout
        except AirflowSkipException as skipped:
            why = skipped.__cause__ or f"{skipped} Last seen: {self._last_message}"
            raise AirflowSkipException(str(why)) from skipped

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the trigger; a soft failure skips with the reason, of which Airflow itself says nothing."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skipped:
            raise AirflowSkipException(str(skipped.__cause__ or skipped)) from skipped

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - Airflow's signature
        """Look once. A database, or a source, that does not answer is asked again at the next interval."""
        seen = self._look_patiently()
        return PokeReturnValue(is_done=seen.done, xcom_value=seen.value if seen.done else None)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Take what the trigger has seen."""
        message = event["message"]
        if event["status"] == "timeout":
            raise AirflowSensorTimeout(f"Not within {timedelta(seconds=self.timeout)}. Last seen: {message}")
        if event["status"] != "satisfied":
            raise AirflowFailException(message)
        self.log.info("%s", message)
        value: dict[str, Any] = event["value"]
        return value

    def _look(self) -> Seen:
        with airflow_errors():
            seen = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).look(self.condition())
        self._last_message = seen.message
        self.log.info("%s", seen.message)
        return seen

    def _look_patiently(self) -> Seen:
        try:
            return self._look()
        except AirflowException as error:
            if not isinstance(error.__cause__, EtlError) or not error.__cause__.retryable:
                raise
            self.log.warning("%s", error)
            self._last_message = str(error)
            from spark_jobs.contracts.watch.condition import Seen

            return Seen(done=False, message=str(error))

    def _first_look(self) -> Seen:
        # What Airflow does around each poke.
        try:
            return self._look_patiently()
        except AirflowException as error:
            if self.never_fail or (self.soft_fail and isinstance(error, AirflowFailException)):
                raise AirflowSkipException(str(error)) from error
            raise

    def _defer(self) -> None:
        from airflow_etl_provider.triggers.ledger import BACKSTOP, SETTLING_SECONDS, LedgerTrigger
        from spark_jobs.contracts.watch import registry

        with airflow_errors():
            condition = registry.to_json(self.condition())
        give_up = datetime.now(UTC) + timedelta(seconds=self.timeout)
        self.defer(
            trigger=LedgerTrigger(
                condition=condition,
                ledger_conn_id=self.ledger_conn_id,
                tracker_schema=self.tracker_schema,
                # All share one connection that asks: nobody may keep it to himself.
                poll_seconds=max(self.poke_interval, _LEAST_POLL_SECONDS),
                give_up_at=give_up.isoformat(),
                end_from_trigger=self.end_from_trigger,
                settle_seconds=SETTLING_SECONDS,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + BACKSTOP,
        )

    def _of_pipeline(self) -> dict[str, Any]:
        return {"pipeline": self.pipeline, "wait_for_first_run": self.wait_for_first_run}
