"""The sensor that knows how far behind its source a pipeline is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.source_lag import SourceLag


class SourceLagSensor(LedgerSensor):
    """Succeed when the pipeline is at most so far behind its Kafka topics; of two limits, when both are kept.

    The ledger says what was read, the broker what there is. No consumer group is needed, and none is made. Needs
    ``airflow-etl-provider[kafka]`` where it looks, and Airflow's connection that ``extract.credentialId`` names.

    :param at_most_rows: how many rows; offsets are counted, so there may be less. (templated)
    :param at_most_seconds: how old the oldest unread record may be, by its Kafka time and the clock of the ledger's
        server. (templated)
    :raises AirflowFailException: also for a pipeline whose source is not Kafka, a broker that refuses the login, and a
        topic that was made anew.

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`. Lag changes without commits: a deferred
    sensor looks every ``poke_interval`` as well.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "at_most_rows", "at_most_seconds")

    def __init__(
        self,
        *,
        at_most_rows: int | str | None = None,
        at_most_seconds: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.at_most_rows = at_most_rows
        self.at_most_seconds = at_most_seconds

    def condition(self) -> SourceLag:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.source_lag import SourceLag

        limits = {"at_most_rows": self.at_most_rows, "at_most_seconds": self.at_most_seconds}
        return SourceLag.of(**self._of_pipeline(), **limits)
