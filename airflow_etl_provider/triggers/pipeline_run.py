"""Waits in the triggerer for the end of a run whose driver is on a cluster."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from time import sleep
from typing import Any, Final

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from airflow_etl_provider.deferred_run import DeferredRun
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.triggers.ledger import LedgerTrigger
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.run_ended import RunEnded

# Airflow gives a trigger that is killed half a minute, of which the cluster may need twenty seconds.
_ASKED_AGAIN: Final = 2
_AGAIN_SECONDS: Final = 3.0


class PipelineRunTrigger(LedgerTrigger):
    """Fires once the run has ended, its driver has fallen silent, none has come up, or time is over.

    Woken by the commit with which the driver ends its run, else as :class:`LedgerTrigger`. When the task is killed,
    marked or cleared meanwhile, the run's right to commit is taken away and the driver is killed at the cluster; when
    another triggerer takes the trigger over, nothing happens to them.

    :param run: :meth:`DeferredRun.to_json` of it.
    :param startup_timeout_seconds: how long the driver may take to come up.
    :param poll_seconds: how long at most between two looks.
    :param give_up_at: as :class:`LedgerTrigger`. :param settle_seconds: likewise.
    """

    def __init__(
        self,
        *,
        run: dict[str, Any],
        startup_timeout_seconds: float = 600.0,
        poll_seconds: float = 60.0,
        give_up_at: str | None = None,
        settle_seconds: float = 0.0,
    ) -> None:
        self.deferred = DeferredRun.from_json(run)
        self.startup_timeout_seconds = startup_timeout_seconds
        condition = RunEnded.of(
            pipeline=self.deferred.pipeline_id,
            run_id=self.deferred.run_id,
            start_within=timedelta(seconds=startup_timeout_seconds),
        )
        super().__init__(
            condition=registry.to_json(condition),
            ledger_conn_id=self.deferred.ledger_conn_id,
            tracker_schema=self.deferred.tracker_schema,
            poll_seconds=poll_seconds,
            give_up_at=give_up_at,
            settle_seconds=settle_seconds,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how the trigger is made again."""
        names = ("startup_timeout_seconds", "poll_seconds", "give_up_at", "settle_seconds")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"run": self.deferred.to_json(), **{name: getattr(self, name) for name in names}}

    def ledger(self) -> LedgerHook:
        """Return the run's ledger."""
        return self.deferred.ledger

    async def on_kill(self) -> None:
        """Stop the run, unless the task still waits for it: then this triggerer alone has lost the trigger."""
        # Until this returns, Airflow cancels it again with each turn of its loop, about once a second. A thread is not
        # cancelled; and what it asks of others, it may block for.
        work = asyncio.ensure_future(asyncio.to_thread(self._stop_unless_waited_for))
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(work)

    def _stop_unless_waited_for(self) -> None:
        if self._still_waited_for():
            self.log.info("Run %s is still waited for; another triggerer has taken over", self.deferred.run_id)
        else:
            self.deferred.stop()

    def _still_waited_for(self) -> bool:
        try:
            state = self._asked_state()
        except Exception as error:  # noqa: BLE001 - whatever it is: a healthy run is not killed for it
            self.log.error(
                "Airflow does not say what became of the task, so run %s goes on; if the task was to be stopped, clear "
                "it, or stop the driver: %s",
                self.deferred.run_id,
                error,
            )
            return True
        if state != "deferred":
            return False
        try:
            row = self.deferred.ledger.run(self.deferred.run_id)
        except EtlError as error:
            self.log.warning("%s", error)
            return True
        # A task that was cleared may wait again by now: for a newer run.
        return row is None or row.is_newest

    def _asked_state(self) -> str | None:
        """Return the task's state; an API server that is away for a moment is asked again."""
        for _ in range(_ASKED_AGAIN):
            try:
                return self._task_state()
            except Exception as error:  # noqa: BLE001 - the last one is raised
                self.log.warning("Asking Airflow again what became of the task: %s", error)
                sleep(_AGAIN_SECONDS)
        return self._task_state()

    def _task_state(self) -> str | None:
        task = self.task_instance
        if task is None:
            raise EtlError("The trigger belongs to no task")
        states = RuntimeTaskInstance.get_task_states(
            dag_id=task.dag_id, task_ids=[task.task_id], run_ids=[task.run_id], map_index=task.map_index
        )
        # One task of one run was asked for; a mapped one has its index in its name.
        found = list(states.get(task.run_id, {}).values())
        return None if not found or found[0] is None else str(found[0])
