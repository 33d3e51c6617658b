"""Which run a page is about: what the task has said of itself, if the ledger says the same; never the address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import Depends, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.links import SHOWN_RUN
from spark_jobs.contracts.reprocess_batches import owning_pipeline
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.runs import read_request


class TaskRun(BaseModel):
    """A run of a ledger, as :func:`~airflow_etl_provider.links.show_run` wrote it down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    conn_id: str
    tracker_schema: str
    connection_params: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class ShownRun:
    """What one page shows.

    :param conn: to the ledger, in a transaction that can change nothing and waits for nothing long.
    :param pipeline_id: whose run it is; of a replay the pipeline whose letters they are.
    """

    conn: Connection
    schema: str
    run_id: str
    pipeline_id: str


def _shown_run(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Iterator[ShownRun]:
    known = _task_run(dag_id, run_id, task_id, map_index)
    ledger = LedgerHook(known.conn_id, schema=known.tracker_schema, connection_params=known.connection_params)
    with _looking(ledger) as conn:
        request = read_request(conn, known.tracker_schema, known.run_id)
        # Who may edit a task's XComs must not see the runs of others by them.
        if not request.started_by.startswith(f"airflow {dag_id}/{task_id}/{run_id}/{map_index}/"):
            raise HTTPException(403, "The run that the task's XCom names was not started by this task.")
        yield ShownRun(conn, known.tracker_schema, known.run_id, owning_pipeline(request.pipeline_id))


def _task_run(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskRun:
    question = XComModel.get_many(
        key=SHOWN_RUN, run_id=run_id, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index
    ).with_only_columns(XComModel.value)
    with create_session() as session:
        found = session.execute(question).first()
    if found is None:
        raise HTTPException(404, "This task has registered no run yet: it waits, or it failed before.")
    try:
        return TaskRun.model_validate(XComModel.deserialize_value(found))
    except ValidationError as error:
        raise HTTPException(404, f"The task's XCom {SHOWN_RUN} is not one of this provider.") from error


@contextmanager
def _looking(ledger: LedgerHook) -> Iterator[Connection]:
    with ledger.session() as conn, conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute("SET LOCAL statement_timeout = '5s'")
        yield conn


SeenRun = Annotated[ShownRun, Depends(_shown_run)]

MaySee = Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))
"""Refuses whoever may not read the task instances of the address's DAG; first of all: nobody learns which there are."""
