"""Brings the pages into Airflow's API server."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_etl_provider.links import PREFIX


class _OnlyWhenAsked:
    """The API server alone asks for the pages: no worker or scheduler has to import them."""

    def __get__(self, instance: object, owner: type) -> list[dict[str, Any]]:
        from airflow_etl_provider.pages.app import app

        return [{"app": app, "url_prefix": PREFIX, "name": "Streaming ETL"}]


class EtlPagesPlugin(AirflowPlugin):
    """The pages that the operators' links lead to."""

    name = "etl_pages"
    fastapi_apps: Any = _OnlyWhenAsked()
