"""``etl-pipeline breakers``: the circuit breakers that runs share, and closing one by hand."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.breakers import BreakerStatus, reset
from spark_jobs.contracts.tracker.breakers import breakers as read_breakers
from spark_jobs.contracts.tracker.migrate import require_version

_ACTIONS = ("list", "reset")
_STATE_STYLES = {"closed": "green", "open": "bold red", "half-open": "yellow"}


def breakers(
    action: Annotated[str, typer.Argument(help="`list`: show them. `reset`: close one, whatever it has counted.")],
    system: Annotated[str | None, typer.Argument(help="Which one, as `list` shows it; for `reset` required.")] = None,
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    reason: Annotated[str | None, typer.Option(help="Why it is closed by hand; kept with its events.")] = None,
    by: Annotated[str | None, typer.Option(help="Who closes it; the system's user unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with each one's newest events.")] = False,
) -> None:
    """Show the circuit breakers of the ledger, or close one by hand.

    A breaker closes by itself, with the first run after its time that succeeds.
    """
    if action not in _ACTIONS:
        raise ConfigError(
            f"etl-pipeline breakers {action}: unknown action", found=action, expected=" or ".join(_ACTIONS)
        )
    if action == "reset" and not (system and reason and reason.strip()):
        raise ConfigError(
            "etl-pipeline breakers reset needs a system and a reason",
            expected='etl-pipeline breakers reset SYSTEM --reason "why"',
        )
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        if action == "reset" and system and reason:
            reset(conn, schema, system, by=by or getpass.getuser(), reason=reason.strip())
        found = read_breakers(conn, schema, system)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], indent=2))
    else:
        Console().print(_table(found))


def _table(found: Sequence[BreakerStatus]) -> Table:
    table = Table(title=None if found else "no system has failed yet")
    for heading in ("system", "state", "failures", "open until", "last failure"):
        table.add_column(heading, overflow="fold")
    for item in found:
        until = item.reopen_at.isoformat(timespec="seconds") if item.reopen_at and item.state == "open" else "-"
        table.add_row(
            Text(item.system),
            Text(item.state, style=_STATE_STYLES[item.state]),
            Text(str(item.failures)),
            Text(until),
            Text(item.last_failure or "-"),
        )
    return table
