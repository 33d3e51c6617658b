"""Which columns a pipeline's steps pass on, as far as it can be told without Spark.

Nothing is known of the source's columns; a ``select`` or an ``aggregation`` fixes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from spark_jobs.contracts.config.transforms import (
    AggregationTransform,
    FilterTransform,
    SelectTransform,
    Transform,
)

_PLAIN = re.compile(r"\s*(?:([A-Za-z_]\w*)|`([^`]+)`)\s*")
WINDOW = ("window_start", "window_end")


@dataclass(frozen=True)
class Columns:
    """The columns after a step.

    :param known: their names, or None while they are the source's.
    :param event_time: those that carry the watermark; Spark keeps it through a plain rename, not through an expression.
    :param groups: after an aggregation: column → the group column (or window bound) that it is.
    """

    known: tuple[str, ...] | None = None
    event_time: frozenset[str] = frozenset()
    groups: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Say whether there is, or may be, a column of this name; ``a.b`` may be a field of ``a``."""
        if self.known is None:
            return True
        return same(name, self.known) or same(name.partition(".")[0], self.known)

    def carries_watermark(self, name: str) -> bool:
        """Say whether this column is the watermark's."""
        return same(name, self.event_time)

    def after(self, step: Transform) -> Columns:
        """Return the columns after one more step."""
        match step:
            case SelectTransform():
                sources = {name: plain_column(expression) for name, expression in step.columns.items()}
                event_time = frozenset(
                    name for name, source in sources.items() if source and same(source, self.event_time)
                )
                groups = {name: _get(self.groups, source) for name, source in sources.items() if source}
                return Columns(tuple(step.columns), event_time, {k: v for k, v in groups.items() if v})
            case AggregationTransform():
                bounds = WINDOW if step.window_duration else ()
                return Columns(step.output_columns, frozenset(), {name: name for name in (*bounds, *step.group_by)})
            case FilterTransform():
                return self
            case _:
                return Columns(None, self.event_time, {})


def plain_column(expression: str) -> str | None:
    """Return the column's name when an SQL expression is nothing but a column."""
    match = _PLAIN.fullmatch(expression)
    return (match.group(1) or match.group(2)) if match else None


def same(name: str, names: Iterable[str]) -> bool:
    """Say whether the name is among the others; case makes no difference, as in Spark."""
    return name.casefold() in {other.casefold() for other in names}


def _get(groups: dict[str, str], name: str) -> str | None:
    return next((group for column, group in groups.items() if same(column, [name])), None)
