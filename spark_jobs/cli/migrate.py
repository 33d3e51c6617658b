"""``etl-pipeline migrate``: create or upgrade the tracker's tables."""

from __future__ import annotations

from typing import Annotated

import typer

from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.tracker.migrate import migrate as apply_migrations


def migrate(
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
) -> None:
    """Create or upgrade the ledger's tables. Safe to run again, and by several at once."""
    with tracker_session(connection) as conn:
        applied = apply_migrations(conn, schema)
    for label in applied:
        typer.echo(f"applied {label}")
    typer.echo(f"schema {schema} is up to date")
