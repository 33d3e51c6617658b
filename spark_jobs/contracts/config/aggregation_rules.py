"""Rules between transforms: columns that exist, names that are unambiguous, windows that Spark can compute."""

from __future__ import annotations

from collections import Counter

from spark_jobs.contracts.config.columns import WINDOW, Columns, same
from spark_jobs.contracts.config.durations import parse_duration
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location, nearest, quoted
from spark_jobs.contracts.config.salvage import UnknowableError
from spark_jobs.contracts.config.streaming import Streaming, Watermark
from spark_jobs.contracts.config.transforms import AggregationTransform


def check(parts: Parts, document: Document) -> Columns | None:
    """Note what does not fit in the transforms; return the result's columns, None when the transforms are not valid."""
    if parts.transforms is None:
        return None
    streaming, watermark = _watermark(parts)
    columns = Columns(None, frozenset({watermark.event_time_column} if watermark else ()))
    for index, step in enumerate(parts.transforms):
        if isinstance(step, AggregationTransform):
            location: Location = ("transforms", index, "parameters")
            _check_window(step, streaming, columns, document, location)
            _check_names(step, document, location)
            _check_columns(step, columns, document, location)
        columns = columns.after(step)
    return columns


def _watermark(parts: Parts) -> tuple[Streaming | None, Watermark | None]:
    try:
        return parts.streaming, parts.streaming.watermark if parts.streaming else None
    except UnknowableError:
        return None, None


def window_column(step: AggregationTransform, columns: Columns) -> str | None:
    """Return the column of the window: the one given, else the watermark's, by the name that it has by now."""
    if step.window_duration is None:
        return None
    return step.window_column or next(iter(sorted(columns.event_time)), None)


def _check_window(
    step: AggregationTransform, streaming: Streaming | None, columns: Columns, document: Document, location: Location
) -> None:
    if step.window_duration is None:
        for name, value in (("windowColumn", step.window_column), ("slideDuration", step.slide_duration)):
            if value:
                document.note((*location, "windowDuration"), f"{name} without windowDuration", "both, or none")
        return
    if window_column(step, columns) is None and streaming is not None:
        hint = "or give streamingConfigJson.watermark; its column is then the window's, too"
        document.note((*location, "windowColumn"), "nothing", "the event-time column of the window", hint)
    if step.slide_duration and parse_duration(step.slide_duration) > parse_duration(step.window_duration):
        found = f"{step.slide_duration}, longer than the window of {step.window_duration}"
        document.note((*location, "slideDuration"), found, "at most the window's length; rows between would be lost")


def _check_names(step: AggregationTransform, document: Document, location: Location) -> None:
    outputs = Counter(item.output.casefold() for item in step.aggregations)
    taken = (*step.group_by, *(WINDOW if step.window_duration else ()))
    for index, item in enumerate(step.aggregations):
        inner = (*location, "aggregations", index)
        hint = f'name it: "{item.column}:{item.function}:{_suggested(item.column, item.function)}"'
        if item.output == "*":
            document.note(inner, "a result without a name", "a name for it", f'name it: "*:{item.function}:rows"')
        elif outputs[item.output.casefold()] > 1:
            document.note(inner, f"several results named {quoted(item.output)}", "a name of its own for each", hint)
        elif same(item.output, taken):
            found = f"a result named {quoted(item.output)}, like a group column"
            document.note(inner, found, "a name of its own", hint)
        if item.column == "*" and item.function != "count":
            document.note(inner, f'"*:{item.function}"', "a column; only count can count rows with *")


def _suggested(column: str, function: str) -> str:
    return f"{function}_{column}" if column.isidentifier() else f"{function}_of_it"


def _check_columns(step: AggregationTransform, columns: Columns, document: Document, location: Location) -> None:
    wanted = [((*location, "groupByColumns"), name) for name in step.group_by]
    if step.window_column:
        wanted.append(((*location, "windowColumn"), step.window_column))
    wanted += [
        ((*location, "aggregations", index), item.column)
        for index, item in enumerate(step.aggregations)
        if item.function != "count"
    ]
    for inner, name in wanted:
        if not columns.has(name):
            known = columns.known or ()
            found = f"the column {quoted(name)}, which the step before does not pass on"
            document.note(inner, found, f"one of {', '.join(known)}", nearest(name, known))
