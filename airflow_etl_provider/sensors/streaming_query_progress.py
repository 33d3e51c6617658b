"""The sensor that knows how far a query has come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor
from spark_jobs.contracts.errors import ConfigError

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.query_progress import QueryProgress


class StreamingQueryProgressSensor(LedgerSensor):
    """Succeed when the pipeline's query has come so far; of several goals, when all are reached.

    :param batch_id: this micro-batch of the newest query is committed, or a later one. (templated)
    :param offsets: the source is read this far: ``{"topic": {"0": 1000}}``, a dict or JSON. (templated)
    :param rows: so many rows are written. (templated)
    :param run_finished: the run has finished. A run that failed is not waited for in vain: a newer one may finish.
    :param rows_per_second: the newest micro-batch read at least so many rows a second.
    :param run_id: look at this run only, such as the ``run_id`` in the operator's XCom; if it ends otherwise than
        finished, the task fails. The newest run, and all runs' micro-batches, without it. (templated)
    :param since: count only runs that were registered, and rows that were committed, from this time on; ISO 8601 with a
        zone. (templated)

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = (
        *LedgerSensor.template_fields,
        "batch_id",
        "offsets",
        "rows",
        "run_id",
        "since",
    )

    def __init__(
        self,
        *,
        batch_id: int | str | None = None,
        offsets: Mapping[str, Any] | str | None = None,
        rows: int | str | None = None,
        run_finished: bool = False,
        rows_per_second: float | None = None,
        run_id: str | None = None,
        since: datetime | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_id = batch_id
        self.offsets = offsets
        self.rows = rows
        self.run_finished = run_finished
        self.rows_per_second = rows_per_second
        self.run_id = run_id
        self.since = since

    def condition(self) -> QueryProgress:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.query_progress import QueryProgress

        return QueryProgress.of(
            **self._of_pipeline(),
            batch_id=self.batch_id,
            offsets=self._offsets(),
            rows=self.rows,
            run_finished=self.run_finished,
            rows_per_second=self.rows_per_second,
            run_id=self.run_id,
            since=self.since,
        )

    def _offsets(self) -> Any:
        if not isinstance(self.offsets, str):
            return self.offsets
        try:
            return json.loads(self.offsets)
        except json.JSONDecodeError as error:
            raise ConfigError(
                "`offsets` is not JSON", found=str(error), expected='{"topic": {"0": 1000}}, or a number'
            ) from None
