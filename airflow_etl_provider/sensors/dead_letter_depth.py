"""The sensor that watches how many dead letters wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.exceptions import AirflowException

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors
from airflow_etl_provider.triggers.dead_letter_depth import DeadLetterDepthTrigger, Depth
from spark_jobs.contracts.errors import ConfigError

if TYPE_CHECKING:
    from airflow.sdk import Context


class DeadLetterDepthSensor(BaseSensorOperator):
    """Wait until few enough dead letters wait (``at_most``), or so many that something is to be done (``at_least``).

    Counts are exact and cheap however many letters there are. The result (XCom) is the number that was seen, and its
    kinds.

    :param pipeline_id: whose letters; all pipelines' when None. (templated)
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL.
    :param at_most: satisfied by this many or fewer. :param at_least: satisfied by this many or more. One of both.
    :param statuses: which letters count.
    :param stages: only these stages; all when empty. :param error_classes: only these error classes.
    :param tracker_schema: PostgreSQL schema of the ledger.
    :param deferrable: wait in the triggerer, without a worker's slot.
    :raises AirflowFailException: the ledger is missing or of another version, or the parameters contradict each other.
    """

    template_fields: Sequence[str] = ("pipeline_id", "stages", "error_classes", "tracker_schema")
    ui_color = "#f4ece8"

    def __init__(
        self,
        *,
        pipeline_id: str | None = None,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        at_most: int | None = None,
        at_least: int | None = None,
        statuses: Sequence[str] = ("pending", "parked"),
        stages: Sequence[str] = (),
        error_classes: Sequence[str] = (),
        tracker_schema: str = "etl",
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline_id = pipeline_id
        self.ledger_conn_id = ledger_conn_id
        self.at_most = at_most
        self.at_least = at_least
        self.statuses = statuses
        self.stages = stages
        self.error_classes = error_classes
        self.tracker_schema = tracker_schema
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Look once; then poke, or wait in the triggerer."""
        with airflow_errors():
            depth = self._depth()
            found = depth.look() if self.deferrable else []
        if not self.deferrable:
            return super().execute(context)
        if depth.satisfied_by(found):
            return self._told(found)
        return self.defer(
            trigger=DeadLetterDepthTrigger(**depth.to_json(), poll_seconds=self.poke_interval),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) if self.timeout else None,
        )

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - Airflow's signature
        """Look once."""
        with airflow_errors():
            depth = self._depth()
            found = depth.look()
        done = depth.satisfied_by(found)
        told = self._told(found)
        return PokeReturnValue(is_done=done, xcom_value=told if done else None)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Take what the trigger has seen."""
        if event["status"] != "satisfied":
            raise AirflowException(event["message"])
        return self._told(event["counts"])

    def _depth(self) -> Depth:
        if (self.at_most is None) == (self.at_least is None):
            raise ConfigError(
                "DeadLetterDepthSensor needs one threshold",
                found=f"at_most={self.at_most}, at_least={self.at_least}",
                expected="at_most (few enough letters wait) or at_least (there is something to do)",
            )
        return Depth(
            pipeline_id=self.pipeline_id or None,
            ledger_conn_id=self.ledger_conn_id,
            tracker_schema=self.tracker_schema,
            at_most=self.at_most,
            at_least=self.at_least,
            statuses=tuple(self.statuses),
            stages=tuple(self.stages),
            error_classes=tuple(self.error_classes),
        )

    def _told(self, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        letters = sum(count["letters"] for count in counts)
        self.log.info("%d dead letters of %s: %s", letters, self.pipeline_id or "all pipelines", _kinds(counts))
        return {"letters": letters, "counts": list(counts)}


def _kinds(counts: Sequence[Mapping[str, Any]]) -> str:
    kinds = (f"{c['letters']} {c['status']} {c['stage']} {c['error_class']}" for c in counts)
    return ", ".join(kinds) or "none"
