"""Dead letters and replays as people read them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_jobs.contracts.replay import Letter, LetterCount, ReplaySummary, WholeLetter

_LONGEST = 60
_STATUS_STYLES = {"pending": "yellow", "replaying": "cyan", "replayed": "green", "parked": "red", "discarded": "dim"}


def letters_table(letters: Sequence[Letter], *, most: int) -> Table:
    """Return a line for each letter."""
    title = None if letters else "no such dead letters"
    caption = f"the newest {most}; more with --limit" if len(letters) == most else None
    table = Table(title=title, caption=caption)
    for heading in ("id", "pipeline", "status", "stage", "error", "try", "first failed", "message"):
        table.add_column(heading, overflow="fold")
    for one in letters:
        table.add_row(
            # Text, not markup: a message may hold square brackets.
            Text(str(one.dead_letter_id)),
            Text(one.pipeline_id),
            Text(one.status, style=_STATUS_STYLES[one.status]),
            Text(one.stage),
            Text(one.error_class),
            Text(str(one.attempt)),
            Text(one.first_failed_at.isoformat(sep=" ", timespec="seconds")),
            Text(_short(one.message)),
        )
    return table


def counts_table(counts: Sequence[LetterCount]) -> Table:
    """Return a line for each kind."""
    table = Table(title=None if counts else "no dead letters")
    for heading in ("pipeline", "status", "stage", "error"):
        table.add_column(heading, overflow="fold")
    table.add_column("letters", justify="right", no_wrap=True)
    for one in counts:
        status = Text(one.status, style=_STATUS_STYLES[one.status])
        table.add_row(Text(one.pipeline_id), status, Text(one.stage), Text(one.error_class), Text(f"{one.letters:,}"))
    return table


def print_letter(letter: WholeLetter, *, as_json: bool) -> None:
    """Print all of a letter; bytes that are text as text, others in base64."""
    if as_json:
        values = letter.model_dump(mode="json", exclude={"raw_key", "raw_value"})
        values |= {name: _base64(getattr(letter, name)) for name in ("raw_key", "raw_value")}
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in letter.model_dump().items():
        if value is not None:
            table.add_row(Text(name.replace("_", " ")), Text(_words(value)))
    Console().print(table)


def replays_table(replays: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each replay."""
    table = Table(title=None if replays else "no replay was started yet")
    for heading in ("replay", "pipeline", "mode", "state", "started", "letters", "home", "failed", "parked"):
        table.add_column(heading, overflow="fold")
    for one in replays:
        summary = one["summary"] or {}
        numbers = (str(summary.get(name, "-")) for name in ("replayed", "failed", "parked"))
        mode = f"{one['mode']}, dry run" if one["dry_run"] else one["mode"]
        cells = (one["replay_id"], one["pipeline_id"], mode, one["state"], one["requested_at"][:19], one["letters"])
        table.add_row(*(Text(str(cell)) for cell in (*cells, *numbers)))
    return table


def summary_text(summary: ReplaySummary) -> Table:
    """Return what came of a replay, by what the letters had failed with."""
    would = "would be " if summary.dry_run else ""
    heading = f"{summary.taken:,} dead letters of {summary.pipeline_id}" if summary.taken else "no letter was chosen"
    if summary.dry_run:
        heading += " (dry run: nothing was written)"
    table = Table(title=heading, caption=_remarks(summary), caption_justify="left")
    for name in ("stage", "error", "taken", f"{would}home", f"{would}failed again", f"{would}parked"):
        table.add_column(name, overflow="fold")
    for one in summary.classes:
        numbers = (one.taken, one.replayed, one.failed, one.parked)
        table.add_row(Text(one.stage), Text(one.error_class), *(Text(f"{number:,}") for number in numbers))
    return table


def _remarks(summary: ReplaySummary) -> Text | None:
    lines = [
        f"{one.dead_letter_id} {one.new_stage} {one.new_error_class}: {_short(one.new_message)}"
        for one in summary.samples[:5]
    ]
    if lines:
        lines.insert(0, "failed again, for instance:")
    if summary.unsendable:
        lines.append(f"{summary.unsendable:,} more hold no record that could be sent, and were left as they are")
    if summary.perhaps_sent:
        lines.append(f"{summary.perhaps_sent:,} more were left: a redrive that died may have sent them (redrive tells)")
    return Text("\n".join(lines)) if lines else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _words(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"base64 {_base64(value)}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, indent=2)
    return str(value)


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
