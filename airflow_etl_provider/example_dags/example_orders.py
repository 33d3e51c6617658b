"""Orders from files of JSON lines: loaded exactly once, watched, repaired, and announced hour by hour.

Start ``example_orders`` by hand; its form takes the folder. The Airflow connections ``warehouse`` (the target's
PostgreSQL) and ``spark_default`` must be there.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, Param, PartitionedAssetTimetable, task

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.checkpoint_audit import CheckpointAuditOperator
from airflow_etl_provider.operators.complete_partitions import CompletePartitionsOperator
from airflow_etl_provider.operators.dead_letter_replay import DeadLetterReplayOperator
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.sensors.batch_gap import BatchGapSensor
from airflow_etl_provider.sensors.dead_letter_depth import DeadLetterDepthSensor
from airflow_etl_provider.sensors.ledger_balance import LedgerBalanceSensor
from airflow_etl_provider.sensors.pipeline_freshness import PipelineFreshnessSensor
from airflow_etl_provider.sensors.streaming_query_progress import StreamingQueryProgressSensor
from airflow_etl_provider.sensors.watermark import WatermarkSensor
from airflow_etl_provider.triggers.batch_committed import BatchCommittedTrigger

PIPELINE = "example_orders"
ORDERS = {
    "pipelineId": PIPELINE,
    "mode": "streaming",
    "schemas": {"order": "id BIGINT, price DECIMAL(12,2), at TIMESTAMP"},
    "extract": {
        "sourceType": "file",
        "schemaName": "order",
        "connectionParams": {"path": "${folder}/orders", "format": "json"},
    },
    "load": {
        "sinkType": "postgresql",
        "table": PIPELINE,
        "autoCreateTable": True,
        "credentialId": "warehouse",
        # A few broken lines are no reason to stop.
        "maxDeadLetterFraction": 0.5,
    },
    "streamingConfigJson": {
        "checkpointLocation": "${folder}/checkpoint",
        "queryName": PIPELINE,
        "triggerMode": "availablenow",
        "watermark": {"eventTimeColumn": "at", "delayThreshold": "10 minutes"},
    },
}

commits = Asset(
    "example_orders/commits",
    watchers=[AssetWatcher(name=PIPELINE, trigger=BatchCommittedTrigger(pipeline=PIPELINE, start_from="beginning"))],
)
hours = Asset("example_orders/complete")
waiting: dict[str, Any] = {"deferrable": True, "timeout": 3600}

with DAG(
    "example_orders",
    schedule=None,
    params={"folder": Param("/tmp/example_orders", type="string", description="Holds orders/*.json")},  # noqa: S108
    tags=["example"],
):
    load = StreamingPipelineOperator(task_id="load", pipeline=ORDERS, variables={"folder": "{{ params.folder }}"})

    # What a report would wait for.
    finished = StreamingQueryProgressSensor(task_id="finished", pipeline=PIPELINE, run_finished=True, **waiting)
    fresh = PipelineFreshnessSensor(task_id="fresh", pipeline=PIPELINE, younger_than="1 hour", **waiting)
    no_gap = BatchGapSensor(task_id="no_gap", pipeline=PIPELINE, last="2 days", **waiting)
    balanced = LedgerBalanceSensor(task_id="balanced", pipeline=PIPELINE, last="2 days", **waiting)
    begun = WatermarkSensor(task_id="begun", pipeline=PIPELINE, through="2026-01-01T00:00:00Z", **waiting)

    # Lines whose price was "N/A" come home without one.
    repair = DeadLetterReplayOperator(
        task_id="repair", pipeline_id=PIPELINE, patch={"_value": """replace(_value, '"N/A"', 'null')"""}
    )
    repaired = DeadLetterDepthSensor(task_id="repaired", pipeline=PIPELINE, at_most=0, **waiting)
    audit = CheckpointAuditOperator(task_id="audit", pipeline=PIPELINE)
    announce = CompletePartitionsOperator(task_id="announce", pipeline=PIPELINE, asset=hours)

    load >> [finished, fresh, no_gap, balanced, begun] >> repair >> repaired >> [audit, announce]

with DAG("example_orders_followed", schedule=[commits], tags=["example"]):

    @task
    def follow(triggering_asset_events: dict[Asset, Any] | None = None) -> list[str]:
        """Return which micro-batches were committed since the last time."""
        told = [event.extra["payload"] for events in (triggering_asset_events or {}).values() for event in events]
        return [f"{batches['id']}: {batches['rows']} rows" for batches in told]

    follow()

with DAG("example_orders_of_an_hour", schedule=PartitionedAssetTimetable(assets=hours), tags=["example"]):

    @task
    def report(dag_run: Any = None) -> str:
        """Return the hour that is complete, and how the pipeline's newest run is."""
        life = LedgerHook().newest_run(PIPELINE)
        return f"{dag_run.partition_key}: {life}"

    report()
