"""The sensor that knows how long the broker still keeps what a pipeline has not read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.retention_risk import RetentionRisk


class RetentionRiskSensor(LedgerSensor):
    """Succeed when Kafka keeps what the pipeline has not read for at least so long.

    Rows that are lost already fail the task at once, and are named with topic, partition and offsets. Needs
    ``airflow-etl-provider[kafka]`` where it looks, and Airflow's connection that ``extract.credentialId`` names, whose
    user may describe the topic's settings.

    :param at_least: the time that must be left; a timedelta, or a text such as ``12 hours``. (templated)
    :raises AirflowFailException: also for a pipeline whose source is not Kafka, a broker that refuses the login, and a
        topic that was made anew.

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "at_least")

    def __init__(self, *, at_least: timedelta | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at_least = at_least

    def condition(self) -> RetentionRisk:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.retention_risk import RetentionRisk

        return RetentionRisk.of(**self._of_pipeline(), at_least=self.at_least)
