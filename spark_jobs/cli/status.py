"""``etl-pipeline status``: how the pipelines are, by their ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.tracker.queries import PipelineStatus, pipeline_status
from spark_jobs.contracts.tracker.run_state import RunPhase

_PHASE_STYLES = {
    RunPhase.FINISHED: "green",
    RunPhase.RUNNING: "cyan",
    RunPhase.SILENT: "bold red",
    RunPhase.FAILED: "red",
    RunPhase.FENCED: "yellow",
    RunPhase.STOPPED: "yellow",
}
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def status(
    pipeline: Annotated[str | None, typer.Argument(help="One pipeline; all of them when left out.")] = None,
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show each pipeline's last micro-batch, its run and whether its books balance."""
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        found = pipeline_status(conn, schema, pipeline)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], indent=2))
    else:
        Console().print(table_of(found))


def table_of(pipelines: Sequence[PipelineStatus]) -> Table:
    """Return the table that people read; one line a pipeline."""
    table = Table(title=None if pipelines else "no pipeline was started yet")
    table.add_column("pipeline", overflow="fold")
    # A terminal of 80 columns must show a pipeline's whole name; times of day are in --json.
    for heading in ("batch", "last commit", "rows", "run", "epoch", "books"):
        table.add_column(heading, justify="left" if heading in ("run", "books") else "right", no_wrap=True)
    for item in pipelines:
        table.add_row(*_cells(item))
    return table


def age(seconds: float | None) -> str:
    """Return a duration in its largest unit, such as ``3 h``; ``-`` for none."""
    if seconds is None:
        return "-"
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def _run(item: PipelineStatus) -> str:
    since = f" {age(item.run_silent_seconds)}" if item.run_phase is RunPhase.SILENT else ""
    return f"{item.run_phase.replace('_', ' ')}{since}"


def _cells(item: PipelineStatus) -> list[Text]:
    # Text, not markup: a pipeline's name may hold square brackets.
    return [
        Text(item.pipeline_id),
        Text("-" if item.last_batch_id is None else str(item.last_batch_id)),
        Text(f"{age(item.last_commit_age_seconds)} ago" if item.last_commit_at else "-"),
        Text(f"{item.rows:,}"),
        Text(_run(item), style=_PHASE_STYLES.get(item.run_phase, "")),
        Text(str(item.epoch)),
        Text(item.ledger, style="green" if item.ledger == "balanced" else "bold red"),
    ]
