"""``etl-pipeline audit``: checkpoint, ledger and source of pipelines, compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.audit.audit import audit as audit_pipeline
from spark_jobs.contracts.audit.files import scheme_of
from spark_jobs.contracts.audit.report import BAD, GOOD, AuditReport, failure
from spark_jobs.contracts.audit.storage import open_files
from spark_jobs.contracts.credentials import resolve
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.contracts.watch.health import pipelines


def audit(
    pipeline: Annotated[list[str] | None, typer.Argument(help="Pipelines; all of them when left out.")] = None,
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the checkpoint of one pipeline is, if not where the ledger says.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare the checkpoints of pipelines with ledger and source, without Spark; nothing is changed.

    Exit code 8 when something is found that the next run would stop at, or that needs somebody.
    """
    if checkpoint is not None and len(pipeline or ()) != 1:
        raise ConfigError(
            "--checkpoint is of one pipeline", found=f"{len(pipeline or ())} pipelines", expected="one PIPELINE"
        )
    where = checkpoint if checkpoint is None or scheme_of(checkpoint) else str(Path(checkpoint).resolve())
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        view = LedgerView(conn, schema, resolve)
        reports = [audit_pipeline(view, name, open_files, checkpoint=where) for name in pipeline or pipelines(view)]
    if as_json:
        typer.echo(json.dumps([report.to_json() for report in reports], indent=2))
    else:
        Console().print(table_of(reports))
    if error := failure(reports, BAD):
        raise error


def table_of(reports: Sequence[AuditReport]) -> Table:
    """Return the table that people read: a line for each finding, or one for a pipeline without any.

    What to do is in the error that follows it: in a column of a narrow terminal nobody could read it.
    """
    table = Table(title=None if reports else "no pipeline was started yet")
    for heading in ("pipeline", "planned", "committed", "ledger", "state", "found"):
        numeric = heading in ("planned", "committed", "ledger")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for report in reports:
        numbers = (report.last_planned, report.last_committed, report.last_in_ledger)
        head = [report.pipeline, *("-" if number is None else str(number) for number in numbers)]
        compared = f"{report.compared_batches:,} micro-batches, {report.compared_files:,} files compared"
        for state, found in [(one.state, one.found) for one in report.findings] or [(report.state, compared)]:
            style = "green" if state in GOOD else "bold red"
            table.add_row(*map(Text, head), Text(state, style=style), Text(found))
            head = [""] * len(head)
    return table
