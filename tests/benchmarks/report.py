"""What was measured, part by part: on the terminal, as JSON for machines, as a page of the docs with plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plots import draw
from rich.console import Console
from rich.table import Table

from sandbox.java import java_version
from sandbox.postgres_binaries import postgres_version

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_BUILT = _REPOSITORY / "build" / "bench" / "results.json"
_PAGE = _REPOSITORY / "docs" / "reference" / "benchmarks.md"
_IMAGES = _REPOSITORY / "docs" / "images"
_COLUMNS = ("what", "value", "against", "ratio", "goal", "met")


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

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "value": round(self.value, 3), "ratio": round(self.ratio, 3), "met": self.met}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Figure:
        series = {int(rows): value for rows, value in found["series"].items()}
        return cls(**{name: found[name] for name in found if name != "met"} | {"series": series})


@dataclass(frozen=True)
class PartResult:
    """All figures of a part: measured in the same minutes, on one machine, and so comparable with each other."""

    title: str
    command: str
    day: str
    rounds: int
    machine: str
    figures: list[Figure]

    @classmethod
    def of(cls, title: str, command: str, rounds: int, figures: Sequence[Figure]) -> PartResult:
        return cls(title, command, f"{datetime.now(UTC):%Y-%m-%d}", rounds, _machine(), list(figures))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "figures": [figure.to_json() for figure in self.figures]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> PartResult:
        return cls(**{**found, "figures": [Figure.from_json(figure) for figure in found["figures"]]})


def keep(part: str, result: PartResult, order: Sequence[str], *, page: bool) -> None:
    """Print a part and keep it beside the other parts' last results; with ``page``, on the docs page as well."""
    table = Table(*_COLUMNS, title=result.title)
    for figure in result.figures:
        table.add_row(*_cells(figure))
    Console(width=170).print(table)
    _write(_BUILT, part, result, order)
    if page:
        results = _write(_PAGE.with_suffix(".json"), part, result, order)
        _PAGE.write_text(_page(results))


def _write(path: Path, part: str, result: PartResult, order: Sequence[str]) -> dict[str, PartResult]:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    results = {name: PartResult.from_json(found) for name, found in kept.items()} | {part: result}
    results = {name: results[name] for name in order if name in results}
    path.write_text(json.dumps({name: each.to_json() for name, each in results.items()}, indent=1) + "\n")
    return results


def _machine() -> str:
    software = f"PostgreSQL {postgres_version()}, Java {java_version()}, Spark {version('pyspark')}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {software}"


def _cells(figure: Figure) -> list[str]:
    goal = "" if figure.goal is None else f"{'≤' if figure.less else '≥'} {figure.goal:g}"
    met = {None: "", True: "yes", False: "**no**"}[figure.met]
    ratio = f"{figure.ratio:.2f}" if figure.against else ""
    return [figure.name, f"{figure.value:,.1f} {figure.unit}", figure.against, ratio, goal, met]


def _page(results: Mapping[str, PartResult]) -> str:
    sections = "\n".join(_section(result) for result in results.values())
    return f"""# Benchmarks

Written by `make bench`, servers and broker on the same machine as Spark and Airflow. Compare ratios, not figures: all
peers of a part ran in the same minutes on the same rows, in interleaved rounds after one that does not count, and
figures are medians. What a missed goal costs, and what was tried, is in [speed](../explanation/speed.md).

"Exactly once" is a whole run in a warm session: claim, checks, checkpoint, rows and ledger in one commit. "Without
ledger" is a bare `foreachBatch` with the same Arrow → COPY task and nothing else: at least once. JDBC is Spark's writer
alone: at least once. All of them read the same Parquet files (`\\copy` reads CSV). Memory is what is resident and
shared with nobody, at its highest, in a two-worker cluster.

{sections}"""


def _section(result: PartResult) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(figure)) + " |" for figure in result.figures]
    images = "".join(f"![{name.replace('-', ' ')}](../images/{name}.svg)\n\n" for name in draw(result.figures, _IMAGES))
    rounds = f"{result.rounds} rounds, " if result.rounds else ""
    return f"""## {result.title}

`{result.command}` on {result.day} ({rounds}{result.machine}).

{images}| {" | ".join(_COLUMNS)} |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
