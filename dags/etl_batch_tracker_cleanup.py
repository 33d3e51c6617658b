"""Keep the ledger small and the database tidy: orphans of drivers that are gone, and rows that are old.

Runs each day. Trigger it with a form for other values, or for a dry run. No pipeline waits for it, and none needs to
be stopped.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param

from airflow_etl_provider.operators.batch_tracker_cleanup import BatchTrackerCleanupOperator
from airflow_etl_provider.operators.orphan_cleanup import OrphanCleanupOperator

PARAMS = {
    "ledger_conn_id": Param("warehouse", type="string", title="Connection", description="To the ledger's PostgreSQL."),
    "tracker_schema": Param("etl", type="string", title="Schema of the ledger"),
    "pipelines": Param(
        [], type="array", items={"type": "string"}, title="Pipelines", description="One a line; all when empty."
    ),
    "days": Param(30, type="number", minimum=0, title="Days", description="Micro-batches older than this may go …"),
    "keep_batches": Param(
        1000,
        type="integer",
        minimum=200,
        title="Micro-batches of each query that stay",
        description="… unless they are among so many newest ones.",
    ),
    "letter_days": Param(
        365,
        type=["null", "number"],
        minimum=0,
        title="Days of settled dead letters",
        description="Replayed and discarded ones, and replays. They stay when empty.",
    ),
    "history_days": Param(
        90,
        type=["null", "number"],
        minimum=0,
        title="Days of history",
        description="Runs, reprocesses, changes of circuit breakers, progress. They stay when empty.",
    ),
    "older_than_minutes": Param(
        15, type="number", minimum=2, title="Minutes", description="Without a sign of life, until a driver is gone."
    ),
    "dry_run": Param(False, type="boolean", title="Only a dry run", description="Say what would go; change nothing."),
}

SHARED: dict[str, Any] = {
    name: f"{{{{ params.{name} }}}}" for name in ("ledger_conn_id", "tracker_schema", "pipelines", "dry_run")
}

with DAG(
    dag_id="etl_batch_tracker_cleanup",
    description="The ledger's retention, and what drivers that are gone have left",
    doc_md=__doc__,
    tags=["etl", "maintenance"],
    params=PARAMS,
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    render_template_as_native_obj=True,
) as dag:
    # Beside each other: what needs a person in one does not hold up the other, and fails the run.
    OrphanCleanupOperator(
        task_id="orphans",
        older_than_minutes="{{ params.older_than_minutes }}",
        progress_days="{{ params.history_days }}",
        **SHARED,
    )
    BatchTrackerCleanupOperator(
        task_id="retention",
        days="{{ params.days }}",
        keep_batches="{{ params.keep_batches }}",
        letter_days="{{ params.letter_days }}",
        history_days="{{ params.history_days }}",
        **SHARED,
    )
