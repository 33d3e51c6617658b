"""The sensor that knows whether anything is missing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.batch_gaps import BatchGaps


class BatchGapSensor(LedgerSensor):
    """Succeed when micro-batches and their source offsets join up, without hole or overlap, across checkpoints too.

    A gap cannot heal: it fails the task at once, and names each hole with its offsets. What is missing for a known
    reason (compaction; rows that the broker deleted before they were read; a checkpoint that a person has started over)
    is named and does not fail. A micro-batch that is decided and not finished yet is waited for.

    :param since: look at micro-batches from this time on, by their commit; ISO 8601 with a zone. (templated)
    :param last: look at micro-batches as young as this, a timedelta or a text such as ``2 days``; all of them without
        ``since`` and ``last``. (templated)
    :param excuse: which kinds of missing source rows do not fail: of ``compaction``, ``retention``,
        ``partition_gone``, ``rolled_back``.

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (*LedgerSensor.template_fields, "since", "last")

    def __init__(
        self,
        *,
        since: datetime | str | None = None,
        last: timedelta | str | None = None,
        excuse: Sequence[str] = ("compaction", "retention"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.last = last
        self.excuse = excuse

    def condition(self) -> BatchGaps:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.batch_gaps import BatchGaps

        return BatchGaps.of(**self._of_pipeline(), since=self.since, last=self.last, excuse=tuple(self.excuse))
