"""Rules between output mode, write mode, keys, watermark and aggregation.

append → append or upsert; update → upsert by the group columns; complete → overwrite or upsert.
"""

from __future__ import annotations

from spark_jobs.contracts.config import upsert_rules
from spark_jobs.contracts.config.aggregation_rules import window_column
from spark_jobs.contracts.config.columns import WINDOW, Columns, same
from spark_jobs.contracts.config.enumerations import LateDataStrategy, OutputMode, WriteMode
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location, any_of, nearest, quoted
from spark_jobs.contracts.config.salvage import attempt
from spark_jobs.contracts.config.streaming import Streaming
from spark_jobs.contracts.config.transforms import AggregationTransform, Transform

FITTING = {
    OutputMode.APPEND: (WriteMode.APPEND, WriteMode.UPSERT),
    OutputMode.UPDATE: (WriteMode.UPSERT,),
    OutputMode.COMPLETE: (WriteMode.OVERWRITE, WriteMode.UPSERT),
}
"""Which write modes go with an output mode."""

_REASONS = {
    (OutputMode.APPEND, WriteMode.OVERWRITE): "each micro-batch would replace what the last one wrote",
    (OutputMode.UPDATE, WriteMode.OVERWRITE): "each micro-batch would replace what the last one wrote",
    (OutputMode.UPDATE, WriteMode.APPEND): "a group that changes comes again, and would be there twice",
    (OutputMode.COMPLETE, WriteMode.APPEND): "the whole result comes each time, and would be there many times",
}
_STREAMING: Location = ("streamingConfigJson",)


def check(parts: Parts, result: Columns | None, document: Document) -> None:
    """Note what does not fit together."""
    if parts.is_streaming and not parts.has_streaming:
        document.note(_STREAMING, "nothing", "how Spark runs the query: checkpointLocation, queryName, …")
    if parts.load:
        attempt(_check_keys, parts.load, result, document)
    if parts.streaming is None:
        return
    attempt(_check_late_data, parts.streaming, document)
    if parts.load:
        attempt(_check_write_mode, parts.streaming, parts.load, document)
    if parts.transforms is None:
        return
    aggregations = [step for step in parts.transforms if isinstance(step, AggregationTransform)]
    attempt(_check_output_mode, parts.streaming, parts.transforms, aggregations, document)
    if parts.load and result and len(aggregations) == 1:
        attempt(_check_group_keys, parts.streaming, parts.load, result, aggregations[0], document)


def _check_write_mode(streaming: Streaming, load: Load, document: Document) -> None:
    output = streaming.output_mode
    if load.write_mode in FITTING[output]:
        return
    fitting = [mode.value for mode in FITTING[output]]
    others = [mode.value for mode, modes in FITTING.items() if load.write_mode in modes]
    hint = f"{_REASONS[output, load.write_mode]}; {load.write_mode} goes with outputMode {any_of(others)}"
    document.note(("load", "writeMode"), f"{load.write_mode} with outputMode {output}", any_of(fitting), hint)


def _check_keys(load: Load, result: Columns | None, document: Document) -> None:
    where: Location = ("load", "keys")
    if load.write_mode is WriteMode.UPSERT and not load.keys:
        document.note(where, "nothing", "the columns that identify a row; upsert needs them")
    if load.keys and load.write_mode is not WriteMode.UPSERT:
        found = f"keys with writeMode {load.write_mode}"
        document.note(where, found, "no keys: only upsert uses them", 'did you mean "writeMode": "upsert"?')
    if result and result.known is not None:
        for name in load.keys:
            # PostgreSQL's column has the result's exact name, so case counts here.
            if name not in result.known:
                expected = f"one of {', '.join(result.known)}"
                found = f"the key {quoted(name)}, which is no column of the result"
                document.note(where, found, expected, nearest(name, result.known))
    upsert_rules.check(load, result, document)


def _check_late_data(streaming: Streaming, document: Document) -> None:
    late = streaming.late_data
    if late is None:
        return
    where = (*_STREAMING, "lateDataConfig")
    if streaming.watermark is None:
        document.note(where, "lateDataConfig without watermark", "a watermark: without it no row is late")
    owners = {
        "dlqTopic": (late.dlq_topic, LateDataStrategy.SEND_TO_DLQ),
        "table": (late.table, LateDataStrategy.SEPARATE_STREAM),
        "path": (late.path, LateDataStrategy.SEPARATE_STREAM),
    }
    for name, (value, strategy) in owners.items():
        if value and late.strategy is not strategy:
            document.note((*where, name), f"{name} with strategy {late.strategy}", f"{name} only with {strategy}")
    if late.strategy is LateDataStrategy.SEND_TO_DLQ and not late.dlq_topic:
        document.note((*where, "dlqTopic"), "nothing", "the topic that late rows go to")


def _check_output_mode(
    streaming: Streaming, steps: tuple[Transform, ...], aggregations: list[AggregationTransform], document: Document
) -> None:
    where = (*_STREAMING, "outputMode")
    if streaming.output_mode is not OutputMode.APPEND:
        if not aggregations and _all_known(steps):
            found = f"{streaming.output_mode} without an aggregation"
            document.note(where, found, "append: without an aggregation no row ever changes")
        return
    if not aggregations:
        return
    if streaming.watermark is None:
        expected = "a watermark: append waits until a group can no longer change, and only a watermark says when"
        hint = 'add streamingConfigJson.watermark, or use outputMode "update" with writeMode "upsert"'
        document.note((*_STREAMING, "watermark"), "nothing, with an aggregation in append mode", expected, hint)
        return
    _check_closes(streaming, steps, document)


def _check_closes(streaming: Streaming, steps: tuple[Transform, ...], document: Document) -> None:
    """In append mode a group must close: its window, or a group column, is the watermark's column."""
    event_time = streaming.watermark.event_time_column if streaming.watermark else ""
    columns = Columns(None, frozenset({event_time}))
    for index, step in enumerate(steps):
        if isinstance(step, AggregationTransform):
            column = window_column(step, columns)
            closing = (column,) if column else step.group_by
            if not any(columns.carries_watermark(name) for name in closing):
                _note_open_groups(step, column, event_time, document, ("transforms", index, "parameters"))
            return
        columns = columns.after(step)


def _note_open_groups(
    step: AggregationTransform, column: str | None, event_time: str, document: Document, location: Location
) -> None:
    expected = f"a window on {event_time}, the watermark's column; else no group ever closes in append mode"
    if column:
        hint = "pass it on by its plain name: through an expression Spark loses the watermark"
        document.note((*location, "windowColumn"), quoted(column), expected, hint)
    else:
        hint = 'add windowDuration, or use outputMode "update" with writeMode "upsert"'
        found = "groups without a window" if step.group_by else "one group without a window"
        document.note((*location, "windowDuration"), found, expected, hint)


def _check_group_keys(
    streaming: Streaming, load: Load, result: Columns, step: AggregationTransform, document: Document
) -> None:
    """In update and complete mode a row is identified by its group, so the keys are exactly the group's columns."""
    if streaming.output_mode is OutputMode.APPEND or load.write_mode is not WriteMode.UPSERT or not load.keys:
        return
    keyed = {result.groups[name] for name in load.keys if name in result.groups}
    windowed = step.window_duration is not None
    missing = [name for name in step.group_by if not same(name, keyed)]
    if windowed and not keyed.intersection(WINDOW):
        missing.insert(0, WINDOW[0])
    extra = [name for name in load.keys if name not in result.groups and name in (result.known or ())]
    if not missing and not extra:
        return
    expected = (
        f"the group columns: {', '.join((*(WINDOW[:1] if windowed else ()), *step.group_by)) or 'there are none'}"
    )
    if not step.group_by and not windowed:
        expected = "group columns; a single total has none, so use outputMode complete with writeMode overwrite"
    told = [f"without {', '.join(missing)}"] if missing else []
    told += [f"with {', '.join(extra)}, which is no group column"] if extra else []
    document.note(("load", "keys"), f"{', '.join(load.keys)}: {' and '.join(told)}", expected)


def _all_known(steps: tuple[Transform, ...]) -> bool:
    from spark_jobs.contracts.config.transforms import PlannedTransform, RegisteredTransform  # noqa: PLC0415

    # What a planned or registered transform does is not known; it may aggregate.
    return not any(isinstance(step, PlannedTransform | RegisteredTransform) for step in steps)
