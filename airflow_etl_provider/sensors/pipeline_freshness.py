"""The sensor that knows how old a pipeline's data is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.freshness import Freshness


class PipelineFreshnessSensor(LedgerSensor):
    """Succeed when the pipeline's last commit is young enough, by the clock of the ledger's server.

    :param younger_than: how old it may be; a timedelta, or a text such as ``30 minutes``. (templated)
    :param idle_runs_count: whether a finished run that found nothing new counts as a commit.

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "younger_than")

    def __init__(self, *, younger_than: timedelta | str, idle_runs_count: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.younger_than = younger_than
        self.idle_runs_count = idle_runs_count

    def condition(self) -> Freshness:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.freshness import Freshness

        return Freshness.of(**self._of_pipeline(), younger_than=self.younger_than, idle_runs_count=self.idle_runs_count)
