"""Orders from Kafka: how far behind the pipeline is, how long Kafka keeps what it has not read; a micro-batch again.

Start it by hand; its form takes the brokers and the topic. Spark needs its Kafka connector: as ``packages``, or from
the paths in the form. The sensors need ``airflow-etl-provider[kafka]``.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_etl_provider.operators.reprocess import ReprocessOperator
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.sensors.retention_risk import RetentionRiskSensor
from airflow_etl_provider.sensors.source_lag import SourceLagSensor

PIPELINE = "example_orders_from_kafka"
ORDERS = {
    "pipelineId": PIPELINE,
    "mode": "streaming",
    "schemas": {"order": "id BIGINT, price DECIMAL(12,2), at TIMESTAMP"},
    "extract": {
        "sourceType": "kafka",
        "schemaName": "order",
        "topic": "${topic}",
        "connectionParams": {"kafka.bootstrap.servers": "${brokers}", "startingOffsets": "earliest"},
    },
    "load": {
        "sinkType": "postgresql",
        "table": PIPELINE,
        "autoCreateTable": True,
        "credentialId": "warehouse",
        # Each row names its micro-batch, so that one can be done again.
        "batchColumn": "etl_batch",
    },
    "streamingConfigJson": {
        "checkpointLocation": "${folder}/checkpoint",
        "queryName": PIPELINE,
        "triggerMode": "availablenow",
    },
}

with DAG(
    PIPELINE,
    schedule=None,
    params={
        "brokers": Param("localhost:9092", type="string"),
        "topic": Param("orders", type="string"),
        "folder": Param("/tmp/example_orders_from_kafka", type="string", description="For the checkpoint"),  # noqa: S108
        "jars": Param("", type="string", description="Spark's Kafka connector, paths with commas"),
    },
    tags=["example"],
):
    load = StreamingPipelineOperator(
        task_id="load",
        pipeline=ORDERS,
        variables={name: f"{{{{ params.{name} }}}}" for name in ("brokers", "topic", "folder")},
        conf={"spark.jars": "{{ params.jars }}"},
    )
    caught_up = SourceLagSensor(task_id="caught_up", pipeline=PIPELINE, at_most_rows=0, deferrable=True, timeout=3600)
    kept = RetentionRiskSensor(task_id="kept", pipeline=PIPELINE, at_least="1 hour", deferrable=True, timeout=3600)
    # As after a mended transform: the first micro-batch's records are read again, its rows replaced.
    again = ReprocessOperator(
        task_id="again", pipeline_id=PIPELINE, batches="0", conf={"spark.jars": "{{ params.jars }}"}
    )
    load >> caught_up >> kept >> again
