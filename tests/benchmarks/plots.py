"""The benchmark page's plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from report import Figure

_BARS = {
    "append": "bench-append",
    "upsert, half of the keys new": "bench-upsert",
    "Kafka, JSON, ten columns": "bench-kafka",
    "small micro-batches (1,000 rows)": "bench-small",
}
_UNITS = {"krows/s": "thousand rows per second", "ms": "milliseconds for each micro-batch"}
_OURS, _OTHERS = "#2f6fb0", "#b9c2cc"


def draw(figures: Sequence[Figure], folder: Path) -> list[str]:
    """Write the plots as SVG; return their names."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    names = []
    for group, name in _BARS.items():
        found = [figure for figure in figures if figure.name.startswith(f"{group}: ")]
        if found:
            rates = {figure.name.removeprefix(f"{group}: "): figure.value for figure in found}
            _bars(group, rates, folder / f"{name}.svg", _UNITS[found[0].unit])
            names.append(name)
    if series := {figure.name: figure.series for figure in figures if figure.series}:
        _lines(series, folder / "bench-memory.svg")
        names.append("bench-memory")
    return names


def _bars(title: str, rates: dict[str, float], path: Path, unit: str) -> None:
    figure, axes = _new(height=0.8 + 0.3 * len(rates))
    names = sorted(rates, key=lambda name: rates[name])
    colours = [_OURS if name.startswith("exactly once") else _OTHERS for name in names]
    bars = axes.barh(names, [rates[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    axes.margins(x=0.12)
    _save(figure, path)


def _lines(series: dict[str, dict[int, float]], path: Path) -> None:
    figure, axes = _new(height=3.4)
    for name, found in series.items():
        label = name.removeprefix("peak memory of the ").rpartition(",")[0]
        axes.plot([rows / 1e6 for rows in found], list(found.values()), marker="o", label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("million rows in one micro-batch")
    axes.set_ylabel("MiB at the peak")
    axes.set_title("memory", loc="left")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _new(height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
