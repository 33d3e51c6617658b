"""The asset that stands for a pipeline's target table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.run_request import RunResult

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context


def target_asset(connection: DatabaseConnection, schema: str | None, table: str) -> Asset:
    """Return the asset ``postgres://host:port/database/schema/table``, Airflow's own form for a PostgreSQL table.

    :param schema: ``public``, where the search path begins unless somebody changed it, when None.
    """
    host = quote(connection.host or "localhost", safe="")
    path = "/".join(quote(part, safe="") for part in (connection.database or "", schema or "public", table))
    return Asset(uri=f"postgres://{host}:{connection.port or 5432}/{path}")


def complete_asset(target: Asset) -> Asset:
    """Return the asset ``<table>/complete``, whose partitions are the table's complete hours or days.

    :param target: as :func:`target_asset` returns it.
    """
    # In the URI the slash is written as %2F: Airflow wants exactly database, schema and table there.
    return Asset(name=f"{target.uri}/complete", uri=f"{target.uri}%2Fcomplete")


def target_alias(pipeline_id: str) -> AssetAlias:
    """Return the outlet of a pipeline's task.

    An alias, because a plain outlet emits an event on every success: a run that committed nothing must stay silent.
    """
    return AssetAlias(name=f"etl:{pipeline_id}")


def event_extra(result: RunResult) -> dict[str, Any]:
    """Return what the asset event tells its consumers about the run: rows, batches, watermark, offsets."""
    told = result.model_dump(mode="json")
    keys = ("run_id", "pipeline_id", "batches", "rows", "watermark", "start_offsets", "end_offsets")
    return {key: told[key] for key in keys}


def tell_target(
    task: BaseOperator, context: Context, config: PipelineConfig, database: DatabaseConnection, result: RunResult
) -> None:
    """Emit the event of a pipeline's target through the task's alias, which it gets where it has none."""
    target = config.load.target
    alias = next((outlet for outlet in task.outlets if isinstance(outlet, AssetAlias)), None)
    if alias is None:
        alias = target_alias(config.pipeline_id)
        task.outlets = [*task.outlets, alias]
    asset = target_asset(database, target.schema, target.table)
    context["outlet_events"][alias].add(asset, extra=event_extra(result))
