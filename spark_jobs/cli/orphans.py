"""``etl-pipeline orphans``: what drivers that are gone have left, of all pipelines."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.problems import not_everything
from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.cleanup import SweepReport, SweepRequest
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.tracker.orphans import sweep_orphans


def orphans(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[list[str] | None, typer.Option(help="Only this pipeline's; may be repeated.")] = None,
    older_than: Annotated[
        float, typer.Option(help="Minutes without a sign of life until a driver is gone; 2 or more.")
    ] = 15,
    progress_days: Annotated[float, typer.Option(help="Age from which progress expires.")] = 90,
    keep_progress: Annotated[bool, typer.Option("--keep-progress", help="Let all progress stay.")] = False,
    role: Annotated[str | None, typer.Option(help="Who prepared and owns them, if not each load.role.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is, and leave it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Finish or roll back prepared transactions, drop staging tables, give back letters of abandoned replays.

    And remove expired progress. A run does the same for its own pipeline. What a driver that is alive needs is left
    alone.
    """
    request = SweepRequest.of(
        pipelines=tuple(pipeline or ()),
        older_than_minutes=older_than,
        progress_days=None if keep_progress else progress_days,
        role=role,
        dry_run=dry_run,
    )
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        report = sweep_orphans(conn, schema, request)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        Console().print(_table(report))
    if report.problems:
        raise not_everything("cleared away", report.problems)


def _table(report: SweepReport) -> Table:
    table = Table(title=None if report.orphans else "no driver has left anything behind")
    for heading in ("pipeline", "what", "name", "would be" if report.dry_run else "state", "rows", "why"):
        table.add_column(heading, overflow="fold")
    for orphan in report.orphans:
        rows = f"{orphan.letters or orphan.rows:,}"
        cells = (orphan.pipeline_id or "-", orphan.kind, orphan.name, orphan.state, rows, orphan.why)
        table.add_row(*map(Text, cells))
    return table
