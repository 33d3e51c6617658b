"""The benchmark's results: on the terminal, as JSON for machines, as a page of the docs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sandbox.java import java_version
from sandbox.postgres_binaries import postgres_version

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured value and its ratio to ``against``. :param less: the goal is an upper bound of the ratio."""

    name: str
    value: float
    unit: str
    against: str
    ratio: float
    goal: float | None = None
    less: bool = False

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.less else self.ratio >= self.goal

    def to_json(self) -> dict[str, object]:
        fields = asdict(self)
        del fields["less"]
        return {**fields, "value": round(self.value, 3), "ratio": round(self.ratio, 3), "met": self.met}


def write_report(figures: list[Figure], rows: int, rounds: int, *, page: bool) -> None:
    """Print, and write ``build/bench/results.json`` and, for a whole run, the docs page."""
    results = _REPOSITORY / "build" / "bench" / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps([figure.to_json() for figure in figures], indent=2) + "\n")
    table = Table("what", "value", "against", "ratio", "goal", "met")
    for figure in figures:
        table.add_row(*_cells(figure))
    Console(width=150).print(table)
    if page:
        path = _REPOSITORY / "docs" / "reference" / "benchmarks.md"
        path.write_text(_page(figures, rows, rounds))


def _cells(figure: Figure) -> list[str]:
    goal = "" if figure.goal is None else f"{'≤' if figure.less else '≥'} {figure.goal:g}"
    met = {None: "", True: "yes", False: "NO"}[figure.met]
    return [figure.name, f"{figure.value:,.1f} {figure.unit}", figure.against, f"{figure.ratio:.2f}", goal, met]


def _page(figures: list[Figure], rows: int, rounds: int) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(figure)) + " |" for figure in figures]
    return f"""# Benchmarks

Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {rows:,} rows × 6 columns, {rounds} interleaved rounds,
medians; {os.cpu_count()} cores, server on the same machine ({platform.machine()}, PostgreSQL {postgres_version()},
Java {java_version()}, Spark {version("pyspark")}). Compare ratios, not figures: all peers ran in the same minutes on
the same rows, read from the same Parquet files; `\\copy` reads CSV.

| what | value | against | ratio | goal | met |
|---|---|---|---|---|---|
{chr(10).join(lines)}

"Exactly once" is a whole run: checks, fence, checkpoint, rows and ledger in one commit. JDBC is Spark's writer alone,
which writes at least once.
"""
