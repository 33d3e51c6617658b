"""``etl-pipeline progress``: how a pipeline's newest micro-batches went, failed ones among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.status import age
from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.tracker.progress import KEPT_ROWS, BatchProgress, recent_progress
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, newest_run_life

_HEADINGS = ("batch", "", "rows", "rows/s", "took", "backlog", "state rows", "watermark", "recorded")


def progress(
    pipeline: Annotated[str, typer.Argument(help="The pipeline's id.", show_default=False)],
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    limit: Annotated[int, typer.Option(min=1, max=KEPT_ROWS, help="How many; the newest come last.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that Spark told.")] = False,
) -> None:
    """Show how a pipeline's newest micro-batches went, failed ones among them, and how its newest run is."""
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        # A name that is spelled wrongly is an error, and not a pipeline without progress.
        pipeline_status(conn, schema, pipeline)
        life = newest_run_life(conn, schema, pipeline)
        found = recent_progress(conn, schema, pipeline, limit)[::-1]
    if as_json:
        batches = [item.model_dump(mode="json") for item in found]
        typer.echo(json.dumps({"run": life.model_dump(mode="json"), "batches": batches}, indent=2))
        return
    console = Console()
    console.print(escape(in_words(life)), highlight=False)
    console.print(_table(found))
    for item in found:
        if item.error:
            console.print(escape(_failure(item)), highlight=False, style="red")


def in_words(life: RunLife) -> str:
    """Return how a run is, as one line."""
    if life.run_id is None:
        return f"{life.pipeline_id}: never started; {life.advice}"
    words = [f"{life.pipeline_id}: run {life.run_id} is {life.phase}"]
    if life.phase is RunPhase.SILENT:
        words.append(f"nothing was heard of it for {age(life.silent_seconds)}")
    elif life.ended_at is not None and life.started_at is None:
        words.append("its driver never came up")
    words += [word for word in (life.advice, life.application_id, life.ui_url) if word]
    return "; ".join(words)


def _table(found: Sequence[BatchProgress]) -> Table:
    table = Table(title=None if found else "no progress is kept")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for item in found:
        table.add_row(*_cells(item))
    return table


def _cells(item: BatchProgress) -> list[Text]:
    failed = item.outcome == "failed"
    attempt = f", attempt {item.attempt}" if item.attempt > 1 else ""
    rate = None if item.processed_rows_per_second is None else round(item.processed_rows_per_second)
    took = "-" if item.duration_ms is None else f"{item.duration_ms / 1000:.2f} s"
    return [
        Text("?" if item.batch_id is None else str(item.batch_id)),
        Text(f"{item.outcome}{f' {item.phase}' if failed else ''}{attempt}", style="red" if failed else ""),
        Text(_count(item.input_rows)),
        Text(_count(rate)),
        Text(took),
        Text(_count(item.backlog_rows)),
        Text(_count(item.state_rows)),
        Text(_moment(item.watermark)),
        Text(_moment(item.recorded_at)),
    ]


def _failure(item: BatchProgress) -> str:
    error = item.error or {}
    return f"{item.batch_id}: {error.get('type')}: {error.get('what')} {error.get('found')}".rstrip()


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
