"""What the demo shows: tables and a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table


class Screen:
    """Where the demo writes to."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

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
        self._console.print(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show rows; numbers to the right."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            is_number = bool(rows) and isinstance(rows[0][index], int)
            table.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
        self._console.print()
        self._console.print(table)
