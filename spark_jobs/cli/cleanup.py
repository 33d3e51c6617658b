"""``etl-pipeline cleanup``: the ledger's retention."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.problems import not_everything
from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.cleanup import CleanupReport, CleanupRequest
from spark_jobs.contracts.tracker.cleanup import clean
from spark_jobs.contracts.tracker.migrate import require_version

_KINDS = ("batches", "files", "runs", "dead_letters", "replays", "reprocesses")


def cleanup(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[list[str] | None, typer.Option(help="Only this pipeline's; may be repeated.")] = None,
    days: Annotated[float, typer.Option(help="Age from which a micro-batch may go.")] = 30,
    keep_batches: Annotated[int, typer.Option(help="Newest batches of each query that stay; 200 or more.")] = 1_000,
    letter_days: Annotated[float, typer.Option(help="Age from which settled dead letters and replays may go.")] = 365,
    history_days: Annotated[float, typer.Option(help="The same of runs, reprocesses, breakers' changes.")] = 90,
    keep_letters: Annotated[bool, typer.Option("--keep-letters", help="Let dead letters and replays stay.")] = False,
    keep_history: Annotated[bool, typer.Option("--keep-history", help="Let runs and breakers' changes stay.")] = False,
    batch_size: Annotated[int, typer.Option(help="Most rows of one transaction.")] = 1_000,
    pause: Annotated[float, typer.Option(help="Seconds between two transactions.")] = 0.05,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and remove nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Remove old rows of the ledger; never what a restart, a replay or a person still needs.

    A micro-batch goes when it is older than --days and not among the newest --keep-batches of its query.
    """
    request = CleanupRequest.of(
        pipelines=tuple(pipeline or ()),
        days=days,
        keep_batches=keep_batches,
        letter_days=None if keep_letters else letter_days,
        history_days=None if keep_history else history_days,
        batch_size=batch_size,
        pause_seconds=pause,
        dry_run=dry_run,
    )
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        report = clean(conn, schema, request)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        Console().print(_table(report))
        _print_kept(report)
    if report.problems:
        raise not_everything("cleaned", report.problems)


def _table(report: CleanupReport) -> Table:
    verb = "would go" if report.dry_run else "removed"
    table = Table(title=verb if report.totals else f"nothing {verb}")
    table.add_column("pipeline", overflow="fold")
    for kind in _KINDS:
        table.add_column(kind.replace("_", " "), justify="right")
    for pipeline_id, counts in report.by_pipeline.items():
        table.add_row(Text(pipeline_id), *(f"{counts.get(kind, 0):,}" for kind in _KINDS))
    return table


def _print_kept(report: CleanupReport) -> None:
    if events := report.totals.get("breaker_events"):
        typer.echo(f"{events:,} changes of circuit breakers")
    for query in report.queries:
        if query.why in ("unfinished", "busy"):
            typer.echo(f"{query.pipeline_id}, query {query.query_id}: old micro-batches stay ({query.why})")
