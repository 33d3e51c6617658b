"""What the demo shows: tables and a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Screen:
    """Where the demo writes to."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            # A log file has no width of its own.
            self._console = Console(highlight=False, width=160)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what is being done while the block runs, and how long it took."""
        begun = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(f"{text} …"):
                yield
        else:
            self.say(f"{text} …")
            yield
        self.say(f"[green]✓[/] {text} ({time.monotonic() - begun:.1f} s)")

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, soft_wrap=True)

    def beside(self, *tables: Table) -> None:
        """Show tables beside one another where there is room, else one after the other."""
        self._console.print()
        self._console.print(Columns(tables, padding=(1, 3)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Make a table of rows; numbers to the right."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        is_number = bool(rows) and isinstance(rows[0][index], int)
        made.add_column(column, justify="right" if is_number else "left", no_wrap=not is_number)
    for row in rows:
        made.add_row(*(f"{value:,}" if isinstance(value, int) else escape(str(value)) for value in row))
    return made
