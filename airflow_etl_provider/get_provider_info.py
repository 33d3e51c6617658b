"""What ``airflow providers get airflow-etl-provider`` shows."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, valid against Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-etl-provider",
        "name": "Streaming ETL",
        "description": "Scheduled Spark Structured Streaming into PostgreSQL, exactly once, with its books.",
        "integrations": [
            {
                "integration-name": "Streaming ETL",
                "external-doc-url": "https://spark.apache.org/docs/latest/streaming/index.html",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "Streaming ETL",
                "python-modules": [
                    "airflow_etl_provider.operators.streaming_pipeline",
                    "airflow_etl_provider.operators.dead_letter_replay",
                    "airflow_etl_provider.operators.pipeline_health",
                    "airflow_etl_provider.operators.batch_tracker_cleanup",
                    "airflow_etl_provider.operators.complete_partitions",
                    "airflow_etl_provider.operators.orphan_cleanup",
                    "airflow_etl_provider.operators.checkpoint_audit",
                    "airflow_etl_provider.operators.reprocess",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Streaming ETL",
                "python-modules": [
                    "airflow_etl_provider.sensors.batch_gap",
                    "airflow_etl_provider.sensors.dead_letter_depth",
                    "airflow_etl_provider.sensors.ledger_balance",
                    "airflow_etl_provider.sensors.pipeline_freshness",
                    "airflow_etl_provider.sensors.retention_risk",
                    "airflow_etl_provider.sensors.source_lag",
                    "airflow_etl_provider.sensors.streaming_query_progress",
                    "airflow_etl_provider.sensors.watermark",
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": "Streaming ETL",
                "python-modules": [
                    "airflow_etl_provider.triggers.batch_committed",
                    "airflow_etl_provider.triggers.ledger",
                    "airflow_etl_provider.triggers.pipeline_run",
                ],
            }
        ],
        "extra-links": [
            "airflow_etl_provider.links.DeadLettersLink",
            "airflow_etl_provider.links.PipelineLink",
            "airflow_etl_provider.links.SparkUiLink",
        ],
        "config": {
            "etl": {
                "description": "Of the Streaming ETL provider.",
                "options": {
                    "spark_history_url": {
                        "description": (
                            "Address of the Spark history server, such as ``https://spark-history:18080``. The link "
                            "*Spark UI* of a task whose driver has ended leads there."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://spark-history.example.com",
                        "default": "",
                    }
                },
            }
        },
        "hooks": [
            {
                "integration-name": "Streaming ETL",
                "python-modules": [
                    "airflow_etl_provider.hooks.cluster_driver",
                    "airflow_etl_provider.hooks.ledger",
                    "airflow_etl_provider.hooks.spark_driver",
                ],
            }
        ],
    }
