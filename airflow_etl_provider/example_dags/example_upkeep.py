"""What keeps a ledger small and tells how its pipelines are, where the drop-in DAGs do not fit."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_etl_provider.operators.batch_tracker_cleanup import BatchTrackerCleanupOperator
from airflow_etl_provider.operators.orphan_cleanup import OrphanCleanupOperator
from airflow_etl_provider.operators.pipeline_health import PipelineHealthOperator

with DAG(
    "example_upkeep",
    schedule=None,
    params={
        "pipelines": Param(["example_orders"], type="array", items={"type": "string"}),
        "dry_run": Param(True, type="boolean", description="Say what would go, and leave it"),
    },
    tags=["example"],
):
    chosen = "{{ params.pipelines | join(',') }}"
    orphans = OrphanCleanupOperator(task_id="orphans", pipelines=chosen, dry_run="{{ params.dry_run }}")
    retention = BatchTrackerCleanupOperator(
        task_id="retention", pipelines=chosen, days=30, keep_batches=1000, dry_run="{{ params.dry_run }}"
    )
    health = PipelineHealthOperator(task_id="health", pipelines=chosen, thresholds={"max_age": "26 hours"})
    orphans >> retention >> health
