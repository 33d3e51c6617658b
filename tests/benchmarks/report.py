"""The benchmark's results: on the terminal, as JSON for machines, as a page of the docs with plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from plots import draw
from rich.console import Console
from rich.table import Table

from sandbox.java import java_version
from sandbox.postgres_binaries import postgres_version

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured value and its ratio to ``against``.

    :param less: the goal is an upper bound of the ratio. :param series: the value for each number of rows.
    """

    name: str
    value: float
    unit: str
    against: str
    ratio: float
    goal: float | None = None
    less: bool = False
    series: dict[int, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.less else self.ratio >= self.goal

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "against": self.against,
            "ratio": round(self.ratio, 3),
            "goal": self.goal,
            "met": self.met,
        }


def write_report(figures: Sequence[Figure], rows: int, rounds: int, *, page: bool) -> None:
    """Print, and write ``build/bench/results.json`` and, for a whole run, the docs page and its plots."""
    results = _REPOSITORY / "build" / "bench" / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    found = [figure.to_json() for figure in figures]
    if not page and results.exists():
        # Of the parts that did not run the older figures stay.
        names = {figure.name for figure in figures}
        found = [older for older in json.loads(results.read_text()) if older["name"] not in names] + found
    results.write_text(json.dumps(found, indent=2) + "\n")
    table = Table("what", "value", "against", "ratio", "goal", "met")
    for figure in figures:
        table.add_row(*_cells(figure))
    Console(width=170).print(table)
    if page:
        names = draw(figures, _REPOSITORY / "docs" / "images")
        path = _REPOSITORY / "docs" / "reference" / "benchmarks.md"
        path.write_text(_page(figures, rows, rounds, names))


def _cells(figure: Figure) -> list[str]:
    goal = "" if figure.goal is None else f"{'≤' if figure.less else '≥'} {figure.goal:g}"
    met = {None: "", True: "yes", False: "**no**"}[figure.met]
    return [figure.name, f"{figure.value:,.1f} {figure.unit}", figure.against, f"{figure.ratio:.2f}", goal, met]


def _page(figures: Sequence[Figure], rows: int, rounds: int, plots: Sequence[str]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(figure)) + " |" for figure in figures]
    images = "\n".join(f"![{name.replace('-', ' ')}](../images/{name}.svg)" for name in plots)
    return f"""# Benchmarks

Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {rows:,} rows × 6 columns (Kafka: 10), {rounds} interleaved
rounds after one that does not count, medians; {os.cpu_count()} cores, server and broker on the same machine
({platform.machine()}, PostgreSQL {postgres_version()}, Java {java_version()}, Spark {version("pyspark")}).
Compare ratios, not figures: all peers of a part ran in the same minutes on the same rows, read from the same Parquet
files (`\\copy` reads CSV). What a missed goal costs, and what was tried, is in [speed](../explanation/speed.md).

{images}

| what | value | against | ratio | goal | met |
|---|---|---|---|---|---|
{chr(10).join(lines)}

"Exactly once" is a whole run in a warm session: claim, checks, checkpoint, rows and ledger in one commit. "Without
ledger" is a bare `foreachBatch` with the same Arrow → COPY task and nothing else: at least once. JDBC is Spark's writer
alone: at least once. Memory is what is resident and shared with nobody, at its highest, in a two-worker cluster.
"""
