"""The sensor that watches how many dead letters wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.sensors.ledger import LedgerSensor

if TYPE_CHECKING:
    from spark_jobs.contracts.watch.dead_letter_depth import DeadLetterDepth


class DeadLetterDepthSensor(LedgerSensor):
    """Wait until few enough dead letters wait (``at_most``), or so many that something is to be done (``at_least``).

    Counts are exact and cheap however many letters there are. The result (XCom) is the number that was seen, and its
    kinds. A deferred sensor is woken by the commits of the pipeline and of its replays; letters that are discarded, and
    those of all pipelines, are seen at the next look, every ``poke_interval``.

    :param pipeline: whose letters; all pipelines' when None. (templated)
    :param at_most: satisfied by this many or fewer. :param at_least: satisfied by this many or more. One of both.
    :param statuses: which letters count.
    :param stages: only these stages; all when empty. (templated)
    :param error_classes: only these error classes; all when empty. (templated)

    The others as :class:`~airflow_etl_provider.sensors.ledger.LedgerSensor`.
    """

    template_fields: Sequence[str] = ("pipeline", "stages", "error_classes", "tracker_schema")
    ui_color = "#f4ece8"

    def __init__(
        self,
        *,
        pipeline: str | None = None,
        at_most: int | None = None,
        at_least: int | None = None,
        statuses: Sequence[str] = ("pending", "parked"),
        stages: Sequence[str] = (),
        error_classes: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline=pipeline or "", **kwargs)
        self.at_most = at_most
        self.at_least = at_least
        self.statuses = statuses
        self.stages = stages
        self.error_classes = error_classes

    def condition(self) -> DeadLetterDepth:
        """Return what is waited for."""
        from spark_jobs.contracts.watch.dead_letter_depth import ALL_PIPELINES, DeadLetterDepth

        return DeadLetterDepth.of(
            pipeline=self.pipeline or ALL_PIPELINES,
            wait_for_first_run=self.wait_for_first_run,
            at_most=self.at_most,
            at_least=self.at_least,
            statuses=tuple(self.statuses),
            stages=tuple(self.stages),
            error_classes=tuple(self.error_classes),
        )
