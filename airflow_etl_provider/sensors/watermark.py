"""The sensor that knows through which event time data is complete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.watermark import WatermarkReached


class WatermarkSensor(LedgerSensor):
    """Succeed when the target has everything up to an event time, but for rows later than the watermark's delay.

    The results of an aggregation are complete through the watermark that their micro-batch began with; the rows of a
    stateless pipeline through the newest event time less the delay. A source without new events does not move it.

    :param through: the event time; ISO 8601 with a zone, such as ``{{ data_interval_end }}``. (templated)

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "through")

    def __init__(self, *, through: datetime | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.through = through

    def condition(self) -> WatermarkReached:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.watermark import WatermarkReached

        return WatermarkReached.of(**self._of_pipeline(), through=self.through)
