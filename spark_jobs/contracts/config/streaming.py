"""How Spark runs the query: checkpoint, trigger, output mode, watermark."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from spark_jobs.contracts.config.durations import DurationError, parse_duration
from spark_jobs.contracts.config.enumerations import (
    LateDataStrategy,
    LateDataStrategyText,
    OutputMode,
    OutputModeText,
    TriggerKind,
)
from spark_jobs.contracts.config.problems import fold, nearest
from spark_jobs.contracts.config.section import (
    DURATION_PATTERN,
    VARIABLE,
    Duration,
    DurationOrZero,
    Flag,
    Int,
    Long,
    Section,
    Text,
    cased,
    mismatch,
)

_TRIGGERS = "availablenow, once, processingtime=<duration> or continuous[=<duration>]"


class TriggerMode(BaseModel):
    """When Spark starts a micro-batch; ``interval`` is a duration, or None."""

    model_config = ConfigDict(frozen=True)

    kind: TriggerKind
    interval: str | None = None

    @property
    def endless(self) -> bool:
        """Whether a run with this trigger goes on until it is stopped."""
        return self.kind in (TriggerKind.PROCESSING_TIME, TriggerKind.CONTINUOUS)

    def __str__(self) -> str:
        return f"{self.kind}={self.interval}" if self.interval else self.kind.value


def _trigger(value: Any) -> TriggerMode:
    if isinstance(value, TriggerMode):
        return value
    if not isinstance(value, str):
        raise mismatch(_TRIGGERS)
    name, equals, interval = value.partition("=")
    kinds = [kind.value for kind in TriggerKind]
    if fold(name) not in kinds:
        raise mismatch(_TRIGGERS, nearest(name, kinds))
    kind = TriggerKind(fold(name))
    if not equals:
        if kind is TriggerKind.PROCESSING_TIME:
            raise mismatch(_TRIGGERS, 'the duration is missing; write "processingtime=30 seconds"')
        return TriggerMode(kind=kind)
    if kind in (TriggerKind.AVAILABLE_NOW, TriggerKind.ONCE):
        raise mismatch(_TRIGGERS, f"{kind} has no duration")
    try:
        parse_duration(interval)
    except DurationError as error:
        raise mismatch(_TRIGGERS, error.hint) from None
    return TriggerMode(kind=kind, interval=" ".join(interval.split()))


def _trigger_schema() -> WithJsonSchema:
    duration = DURATION_PATTERN.removeprefix("^").removesuffix("$")
    plain = "|".join(cased(kind) for kind in TriggerKind if kind is not TriggerKind.PROCESSING_TIME)
    timed = "|".join(cased(kind) for kind in (TriggerKind.PROCESSING_TIME, TriggerKind.CONTINUOUS))
    examples = ["availablenow", "once", "processingtime=30 seconds", "continuous"]
    pattern = rf"^\s*({plain}|({timed})\s*={duration})\s*$"
    return WithJsonSchema({"anyOf": [{"enum": examples}, {"type": "string", "pattern": pattern}, VARIABLE]})


TriggerModeText = Annotated[
    TriggerMode, BeforeValidator(_trigger), PlainSerializer(str, return_type=str), _trigger_schema()
]


class Watermark(Section):
    """How late rows may come."""

    event_time_column: Text = Field(description="A timestamp column of the source.")
    delay_threshold: DurationOrZero = Field(description="How long behind the latest event time a row may be.")


class LateData(Section):
    """What happens to rows that come after their window was closed."""

    strategy: LateDataStrategyText = Field(
        LateDataStrategy.DROP,
        description="`drop` or `logAndDrop`; both count. `sendToDLQ` and `separateStream` are not supported yet.",
    )
    dlq_topic: Text | None = Field(None, description="`sendToDLQ`: the topic.")
    table: Text | None = Field(None, description="`separateStream`: the table.")
    path: Text | None = Field(None, description="`separateStream`: the directory.")


class Streaming(Section):
    """The streaming query."""

    checkpoint_location: Text = Field(description="Directory of Spark's checkpoint; each pipeline has its own.")
    query_name: Text = Field(description="Name of the query in Spark's UI and metrics.")
    output_mode: OutputModeText = Field(OutputMode.APPEND, description="`append`, `update` or `complete`.")
    trigger: TriggerModeText = Field(
        TriggerMode(kind=TriggerKind.AVAILABLE_NOW),
        alias="triggerMode",
        description="`availablenow`, `once`, `processingtime=<duration>` or `continuous[=<duration>]`.",
    )
    watermark: Watermark | None = Field(
        None, description="How late rows may come; needed by aggregations in append mode."
    )
    enable_idempotence: Flag = Field(
        True, description="Exactly once. `false` is not supported: this sink cannot do less."
    )
    max_records_per_trigger: Long | None = Field(
        None,
        description="Kafka: at most so many records in a micro-batch. Of it and `maxOffsetsPerTrigger` the smaller.",
    )
    max_files_per_trigger: Int | None = Field(None, description="Files: at most so many files in a micro-batch.")
    state_timeout: Duration | None = Field(None, description="Not supported yet; the watermark bounds the state.")
    late_data: LateData | None = Field(None, alias="lateDataConfig", description="Late rows; needs a watermark.")
