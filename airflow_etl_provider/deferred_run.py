"""A run whose task waits in the triggerer: what whoever goes on with it, or ends it, must know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from airflow_etl_provider.hooks.cluster_driver import ClusterDriver
from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import EtlError

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

STATE_KEY: Final = "etl_deferred_run"
"""Where the task's state store has it, from the deferral until the run was seen to its end."""


@dataclass(frozen=True)
class DeferredRun:
    """A run, its ledger, and its driver on the cluster. Names only, and no secret.

    :param connection_params: see :class:`LedgerHook`.
    :param job_id: see :class:`ClusterDriver`.
    """

    pipeline_id: str
    run_id: str
    ledger_conn_id: str
    tracker_schema: str
    connection_params: dict[str, str]
    spark_conn_id: str
    job_id: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` has written."""
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, ledger: LedgerHook, run_id: str, *, spark_conn_id: str, job_id: str) -> Self:
        """Return what is to be known of a run that was submitted.

        :raises EtlError: the ledger cannot be read.
        """
        return cls(
            # Of the run: a replay is a pipeline of its own in the ledger.
            pipeline_id=ledger.request(run_id).pipeline_id,
            run_id=run_id,
            ledger_conn_id=ledger.conn_id,
            tracker_schema=ledger.schema,
            connection_params=ledger.connection_params,
            spark_conn_id=spark_conn_id,
            job_id=job_id,
        )

    @classmethod
    def of_task(cls, context: Context) -> Self | None:
        """Return the run that this task waited for when it was last heard of; None when it was seen to its end."""
        store = context.get("task_state_store")
        found = store.get(STATE_KEY) if store is not None else None
        return cls.from_json(found) if isinstance(found, Mapping) else None

    def keep(self, context: Context) -> None:
        """Let the task know of it, whatever becomes of its trigger."""
        if (store := context.get("task_state_store")) is not None:
            store.set(STATE_KEY, self.to_json())

    @staticmethod
    def forget(context: Context) -> None:
        """There is nothing to wait for, or to stop, any more."""
        if (store := context.get("task_state_store")) is not None:
            store.delete(STATE_KEY)

    @property
    def ledger(self) -> LedgerHook:
        """The ledger in which it is registered."""
        return LedgerHook(
            self.ledger_conn_id, schema=self.tracker_schema, connection_params=dict(self.connection_params)
        )

    def stop(self) -> bool:
        """Take its right to commit away, and have the cluster kill its driver; return whether both are done.

        The one also where the other fails; what failed is in the log. Blocks for up to half a minute.
        """
        fenced, killed = self._fence(), self._kill()
        return fenced and killed

    def _fence(self) -> bool:
        try:
            self.ledger.retire(self.run_id)
        except EtlError as error:
            log.warning("Run %s could not be fenced; the next run's start fences it. %s", self.run_id, error)
            return False
        log.info("Run %s cannot commit any more", self.run_id)
        return True

    def _kill(self) -> bool:
        try:
            ClusterDriver(self.spark_conn_id, self.job_id).kill()
        except Exception as error:  # noqa: BLE001 - whatever a cluster's client raises: without the right it is harmless
            log.warning("The driver %s of run %s may still run: %s", self.job_id, self.run_id, error)
            return False
        return True
