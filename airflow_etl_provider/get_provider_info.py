"""What ``airflow providers get airflow-etl-provider`` shows."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, valid against Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-etl-provider",
        "name": "Streaming ETL",
        "description": "Scheduled Spark Structured Streaming into PostgreSQL, exactly once, with its books.",
    }
