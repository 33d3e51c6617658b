"""The operator that announces hours or days of event time as complete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.outcome import airflow_errors
from airflow_etl_provider.template_values import is_true

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spark_jobs.contracts.tracker.announcements import Announcements, Announcer, OpenClaim
    from spark_jobs.contracts.watch.complete_partitions import PartitionsRequest, Pending

# In any other state, or gone, a task has stored its events or never will.
_ALIVE: Final = ("scheduled", "queued", "running", "restarting", "deferred", "up_for_retry", "up_for_reschedule")
# How far Airflow's clock may be behind the ledger's.
_CLOCKS_APART: Final = timedelta(days=1)


class CompletePartitionsOperator(BaseOperator):
    """Announce the hours or days of event time that have become complete, each as a partition of an asset.

    A period is complete when the pipeline's watermark has passed its end (as
    :class:`~airflow_etl_provider.sensors.watermark.WatermarkSensor` has it). A DAG with
    ``schedule=PartitionedAssetTimetable(assets=asset)`` gets a run for each one; its ``partition_key`` is
    ``2026-11-22T06:00:00+0000`` for an hour and ``2026-11-22`` for a day. Give each grain an asset of its own. When
    nothing has become complete the task is skipped, as an asset event without a key would be sent otherwise.

    What is guaranteed: each partition is announced, and announced once, whatever task, worker or scheduler dies when.
    Airflow stores a task's events together with its success. Before, the task claims its partitions in the ledger;
    the next execution (a retry, or another run) looks at what became of a claim: a task that is still on its way keeps
    it; of one that has ended, Airflow is asked for the events that it has stored, and what is not among them is
    announced again. A partition is announced a second time only where Airflow's record was lost in between: its asset
    events were removed, or its database restored, before the next execution.

    A target that was started over (its checkpoint was given up knowingly) fills old periods again: they are not
    announced again unless ``announce_again`` says so. Rows later than the watermark's delay change nothing either.

    :param pipeline: its id; it has a watermark. (templated)
    :param asset: whose partitions they are; see :func:`~airflow_etl_provider.assets.complete_asset`. It becomes an
        outlet and an inlet of the task.
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. (templated)
    :param grain: ``hour`` or ``day``. (templated)
    :param timezone: whose hours and days; a day has 23 to 25 hours where clocks are changed. (templated)
    :param since: no partitions before the one that this time lies in; ISO 8601 with a zone. From the first event in the
        ledger on when None. (templated)
    :param max_per_run: most partitions of one execution, the oldest first. (templated)
    :param max_backlog: the task fails when more than so many were to be announced, such as when one event with a wrong
        time lies decades back. (templated)
    :param announce_again: whether a target that was started over announces its periods anew. (templated)
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :raises AirflowSkipException: nothing has become complete since.
    :raises AirflowFailException: the pipeline has never run, has no watermark, or saw events of the future; a parameter
        is not valid; the ledger is missing or of another version.
    """

    template_fields: Sequence[str] = (
        "pipeline",
        "ledger_conn_id",
        "grain",
        "timezone",
        "since",
        "max_per_run",
        "max_backlog",
        "announce_again",
        "tracker_schema",
    )
    ui_color = "#e8ecf4"

    def __init__(
        self,
        *,
        pipeline: str,
        asset: Asset,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        grain: str = "hour",
        timezone: str = "UTC",
        since: datetime | str | None = None,
        max_per_run: int | str = 500,
        max_backlog: int | str = 10_000,
        announce_again: bool | str = False,
        tracker_schema: str = "etl",
        **kwargs: Any,
    ) -> None:
        # Airflow tells a task of an asset's events only where that is an inlet.
        super().__init__(inlets=[asset], outlets=[asset], **kwargs)
        self.pipeline = pipeline
        self.asset = asset
        self.ledger_conn_id = ledger_conn_id
        self.grain = grain
        self.timezone = timezone
        self.since = since
        self.max_per_run = max_per_run
        self.max_backlog = max_backlog
        self.announce_again = announce_again
        self.tracker_schema = tracker_schema

    def request(self) -> PartitionsRequest:
        """Return what the rendered parameters ask for.

        :raises ConfigError: naming every value that is not valid.
        """
        from spark_jobs.contracts.watch.complete_partitions import PartitionsRequest

        return PartitionsRequest.of(
            pipeline=self.pipeline,
            grain=self.grain,
            timezone=self.timezone,
            since=None if self.since in ("", "None") else self.since,
            per_run=self.max_per_run,
            backlog=self.max_backlog,
            again=is_true(self.announce_again),
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Settle what earlier tasks have claimed, claim what is complete now, and announce it."""
        from spark_jobs.contracts.tracker.announcements import Announcer

        ti = context["ti"]
        task = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}
        me = Announcer(**task, try_id=str(ti.id))
        with airflow_errors():
            found, mine = self._claimed(context, me)
        if found.left:
            self.log.info("%d more are complete: the next execution announces them", found.left)
        if not mine:
            through = f"complete through {found.through.isoformat()}" if found.through else found.nothing
            raise AirflowSkipException(f"{self.pipeline}: {through}; nothing has become complete since")
        self.log.info("%s: complete are %s", self.pipeline, ", ".join(mine))
        told = {
            "pipeline": self.pipeline,
            "grain": self.grain,
            "timezone": self.timezone,
            "complete_through": found.through.isoformat() if found.through else None,
        }
        event = context["outlet_events"][self.asset]
        event.extra.update(told)
        event.add_partitions(mine)
        return {**told, "announced": mine, "left": found.left}

    def _claimed(self, context: Context, me: Announcer) -> tuple[Pending, list[str]]:
        from spark_jobs.contracts.tracker.announcements import Announcements
        from spark_jobs.contracts.watch.complete_partitions import pending
        from spark_jobs.contracts.watch.condition import LedgerView

        request = self.request()
        with LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).session() as conn:
            announcements = Announcements(conn, self.tracker_schema, request.pipeline, self.asset.name)
            over = self._settled(context, announcements, me)
            found = pending(LedgerView(conn, self.tracker_schema), request, announcements, over)
            claimed = announcements.claim(me, found.periods, over, began_with=found.began_with, again=request.again)
        return found, [period.key for period in found.periods if period.key in claimed]

    def _settled(self, context: Context, announcements: Announcements, me: Announcer) -> list[Announcer]:
        """Settle what Airflow has stored; return the tasks that have ended, and left the rest of their claims."""
        over = []
        for claim in announcements.open():
            # First whether it has ended, then what it has stored: the other way round, it might store it in between.
            # Of this very task an earlier try has ended.
            if not claim.announcer.is_same_task(me) and self._is_alive(context, claim.announcer):
                self.log.info("%s may still announce %d partitions", claim.announcer, len(claim.keys))
                continue
            announcements.settle(claim.announcer, self._stored(context, claim))
            over.append(claim.announcer)
        return over

    @staticmethod
    def _is_alive(context: Context, announcer: Announcer) -> bool:
        runs = context["ti"].get_task_states(
            dag_id=announcer.dag_id,
            run_ids=[announcer.run_id],
            task_ids=[announcer.task_id],
            map_index=announcer.map_index,
        )
        return any(str(state) in _ALIVE for states in runs.values() for state in states.values())

    def _stored(self, context: Context, claim: OpenClaim) -> set[str]:
        """Return which of the claim's keys Airflow has an event of."""
        by = claim.announcer
        events = context["inlet_events"][self.asset].after((claim.claimed_at - _CLOCKS_APART).isoformat())
        return {
            event.partition_key
            for event in events
            if event.partition_key in claim.keys
            and (event.source_dag_id, event.source_run_id, event.source_task_id, event.source_map_index)
            == (by.dag_id, by.run_id, by.task_id, by.map_index)
        }
