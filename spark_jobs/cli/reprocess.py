"""``etl-pipeline reprocess``: committed micro-batches again, in place of what they wrote."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.console import Console
from rich.table import Table

from spark_jobs.cli.logged_run import carry_out_logged
from spark_jobs.cli.run import spark_settings, with_log_file
from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.log_settings import log_format, log_level
from spark_jobs.contracts.name_values import parse_name_values
from spark_jobs.contracts.reprocess_batches import ReprocessRequest, ReprocessSummary
from spark_jobs.contracts.tracker.reprocess_batches import read_reprocess_summary

_COLUMNS = ("micro-batch", "rows before", "rows now", "dead letters before", "dead letters now")


def reprocess(
    pipeline: Annotated[str, typer.Argument(help="Whose micro-batches they are.")],
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    batches: Annotated[str | None, typer.Option(help="First and last batch id, such as 12-40; or one.")] = None,
    since: Annotated[str | None, typer.Option(help="With --until: from this time on, ISO 8601 with its zone.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    times: Annotated[
        str, typer.Option(help="Whose time it is: `event_time` of rows, or `commit_time` of micro-batches.")
    ] = "event_time",
    offsets: Annotated[
        str | None, typer.Option(help="Those that have read these records: topic/partition:first-last.")
    ] = None,
    query_id: Annotated[str | None, typer.Option(help="Of this query; the one that was used last if unset.")] = None,
    reprocess_id: Annotated[
        str | None, typer.Option("--id", help="Go on with one that did not end; its choice must be the same.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything, and roll it back.")] = False,
    master: Annotated[str | None, typer.Option(help="Spark master; `local[*]` unless given.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", metavar="KEY=VALUE", help="Spark setting.")] = None,
    packages: Annotated[str | None, typer.Option(help="Maven coordinates for Spark, as in spark-submit.")] = None,
    jars: Annotated[str | None, typer.Option(help="Jar files for Spark, with commas between.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Read micro-batches again, and put their rows in the place of those that they wrote."""
    wanted = ReprocessRequest.of(
        reprocess_id=_id(reprocess_id),
        pipeline_id=pipeline,
        query_id=query_id,
        batches=batches,
        since=since,
        until=until,
        times=times,
        offsets=offsets,
        dry_run=dry_run,
    )
    summary = _carried_out(
        wanted,
        connection,
        schema=schema,
        master=master,
        settings=spark_settings(parse_name_values(conf or [], "--conf"), packages, jars),
    )
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2))
    else:
        Console().print(_table(summary))


def _carried_out(
    wanted: ReprocessRequest, credential_id: str, *, schema: str, master: str | None, settings: Mapping[str, str]
) -> ReprocessSummary:
    form, level = log_format(None, "--log-format"), log_level(None, "--log-level")
    log_path = Path(tempfile.mkstemp(prefix="etl-reprocess-", suffix=".log")[1])
    conf = with_log_file(dict(settings), log_path, form)
    typer.echo(f"reprocess {wanted.reprocess_id}", err=True)
    # Spark is imported from here on: everything above must be quick to say no.
    from spark_jobs.run_pipeline import run_reprocess  # noqa: PLC0415
    from spark_jobs.runtime.session import get_session  # noqa: PLC0415
    from spark_jobs.runtime.stopping import Stop  # noqa: PLC0415

    stop = Stop()
    stop.on_signals()
    session = partial(get_session, f"etl-pipeline reprocess {wanted.pipeline_id}", conf, master=master)
    carry_out_logged(
        lambda: run_reprocess(
            wanted, resolve_database(credential_id), tracker_schema=schema, stop=stop, session=session
        ),
        stop,
        log_path,
        wanted.pipeline_id,
        form,
        level,
    )
    with tracker_session(credential_id) as conn:
        summary = read_reprocess_summary(conn, schema, wanted.reprocess_id)
    if summary is None:
        raise EtlError("The reprocess has ended and left no summary", cure=f"Read {log_path}")
    return summary


def _table(summary: ReprocessSummary) -> Table:
    how = "would be reprocessed (dry run)" if summary.dry_run else "reprocessed"
    title = f"{summary.batches:,} micro-batches of {summary.pipeline_id} {how}: {summary.reprocess_id}"
    table = Table(title=title, show_footer=summary.batches > 1)
    sums: tuple[int | str, ...] = (
        "all",
        summary.rows_before,
        summary.rows_after,
        summary.letters_before,
        summary.letters_after,
    )
    for heading, number in zip(_COLUMNS, sums, strict=True):
        table.add_column(heading, footer=_shown(number), justify="right")
    for one in summary.shown:
        cells = (one.batch_id, one.rows_before, one.rows_after, one.letters_before, one.letters_after)
        table.add_row(*map(_shown, cells))
    if len(summary.shown) < summary.batches:
        table.add_row("…")
    return table


def _shown(number: int | str) -> str:
    return number if isinstance(number, str) else f"{number:,}"


def _id(text: str | None) -> UUID:
    try:
        return uuid4() if text is None else UUID(text)
    except ValueError:
        raise ConfigError("--id is no id of a reprocess", found=text or "", expected="a UUID") from None
