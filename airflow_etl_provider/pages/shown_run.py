"""Which run a page is about: what the task has said of itself, never what the address says."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import Depends, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.links import SHOWN_RUN


class ShownRun(BaseModel):
    """A run of a ledger, as :func:`~airflow_etl_provider.links.show_run` wrote it down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    pipeline_id: str
    conn_id: str
    tracker_schema: str
    connection_params: dict[str, str] = Field(default_factory=dict)

    @property
    def ledger(self) -> LedgerHook:
        """The ledger that knows it."""
        return LedgerHook(self.conn_id, schema=self.tracker_schema, connection_params=self.connection_params)


def _shown_run(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> ShownRun:
    question = XComModel.get_many(
        key=SHOWN_RUN, run_id=run_id, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index
    ).with_only_columns(XComModel.value)
    with create_session() as session:
        found = session.execute(question).first()
    if found is None:
        raise HTTPException(404, "This task has registered no run yet: it waits, or it failed before.")
    try:
        return ShownRun.model_validate(XComModel.deserialize_value(found))
    except ValidationError as error:
        raise HTTPException(404, f"The task's XCom {SHOWN_RUN} is not one of this provider.") from error


SeenRun = Annotated[ShownRun, Depends(_shown_run)]

MaySee = Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))
"""Refuses whoever may not read the task instances of the address's DAG; first of all: nobody learns which there are."""
