"""``etl-pipeline prepared``: prepared transactions that drivers left behind, and batches that wait for their end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.left_behind import LeftBehind, left_behind, resolve_left_behind
from spark_jobs.contracts.tracker.migrate import require_version

_ACTIONS = ("list", "resolve")


def prepared(
    action: Annotated[
        str, typer.Argument(help="`list`: show them. `resolve`: finish what was decided, undo the rest.")
    ],
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str | None, typer.Option(help="Only this pipeline's.")] = None,
    role: Annotated[str | None, typer.Option(help="The role that prepared them (load.role).")] = None,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="Record parts that somebody rolled back by hand as a gap.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show or resolve what the two-phase commits of drivers that died have left; never what others prepared.

    A run resolves its own pipeline's by itself when it starts. Parts of a driver that still runs are left alone.
    """
    if action not in _ACTIONS:
        raise ConfigError(
            f"etl-pipeline prepared {action}: unknown action", found=action, expected=" or ".join(_ACTIONS)
        )
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        found = left_behind(conn, schema, pipeline)
        if action == "resolve":
            found = _resolve(conn, schema, found, role, accept_missing=accept_missing)
    if as_json:
        typer.echo(json.dumps([item.to_json() for item in found], indent=2))
    else:
        Console().print(_table(found, resolved=action == "resolve"))


def _resolve(
    conn: Connection, schema: str, found: Sequence[LeftBehind], role: str | None, *, accept_missing: bool
) -> list[LeftBehind]:
    pipelines = dict.fromkeys(item.pipeline_id for item in found)
    return [
        done
        for pipeline_id in pipelines
        for done in resolve_left_behind(conn, schema, pipeline_id, role=role, accept_missing=accept_missing)
    ]


def _table(found: Sequence[LeftBehind], *, resolved: bool) -> Table:
    nothing = "nothing was left to resolve" if resolved else "no prepared transactions of any pipeline"
    table = Table(title=None if found else nothing)
    for heading in ("pipeline", "batch", "part", "state", "since", "owner", "name"):
        table.add_column(heading, overflow="fold")
    for item in found:
        table.add_row(*(Text(str(value)) for value in _cells(item)))
    return table


def _cells(item: LeftBehind) -> tuple[Any, ...]:
    since = item.since.isoformat(timespec="seconds") if item.since else "-"
    part = "-" if item.part is None else item.part
    return item.pipeline_id, item.batch_id, part, item.state, since, item.owner or "-", item.name or "-"
