"""The sensor that reads the ledger's verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.balance import LedgerBalance


class LedgerBalanceSensor(LedgerSensor):
    """Succeed when every row that was read is written or accounted for, and no micro-batch is half finished.

    :param last: look at micro-batches as young as this; a timedelta, or a text such as ``1 day``; all of them without
        it. (templated)
    :param at_most_lost: share of the rows, 0 to 1, that may be rejected, dead letters or late; any share when None.

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "last")

    def __init__(
        self, *, last: timedelta | str | None = None, at_most_lost: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.last = last
        self.at_most_lost = at_most_lost

    def condition(self) -> LedgerBalance:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.balance import LedgerBalance

        return LedgerBalance.of(**self._of_pipeline(), last=self.last, at_most_lost=self.at_most_lost)
