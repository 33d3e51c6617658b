"""The enumerations of the configuration; the values are the names that messages and code use."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import PlainSerializer

from spark_jobs.contracts.config.problems import fold
from spark_jobs.contracts.config.section import any_case, spelled


class PipelineMode(StrEnum):
    """Whether a pipeline reads on from its checkpoint, or everything each time."""

    STREAMING = "streaming"
    BATCH = "batch"


class OutputMode(StrEnum):
    """Which rows of the result a micro-batch hands to the sink, as in Spark."""

    APPEND = "append"
    UPDATE = "update"
    COMPLETE = "complete"


class WriteMode(StrEnum):
    """What the sink does with them."""

    APPEND = "append"
    OVERWRITE = "overwrite"
    UPSERT = "upsert"


class WriteStrategy(StrEnum):
    """How rows and ledger row come to be committed together."""

    AUTO = "auto"
    SINGLE = "single"
    STAGED = "staged"
    TWO_PHASE = "two_phase"


class OnConflict(StrEnum):
    """What an upsert does with a row whose key is there."""

    UPDATE = "update"
    NOTHING = "nothing"


class SchemaEvolution(StrEnum):
    """What happens when the target table lacks something that the query has."""

    STRICT = "strict"
    ADD_COLUMNS = "add_columns"
    WIDEN = "widen"


class TriggerKind(StrEnum):
    """When Spark starts a micro-batch."""

    AVAILABLE_NOW = "availablenow"
    ONCE = "once"
    PROCESSING_TIME = "processingtime"
    CONTINUOUS = "continuous"


class LateDataStrategy(StrEnum):
    """What happens to rows that come after their window was closed."""

    DROP = "drop"
    LOG_AND_DROP = "log_and_drop"
    SEND_TO_DLQ = "send_to_dlq"
    SEPARATE_STREAM = "separate_stream"


class AggregationFunction(StrEnum):
    """The functions of an aggregation."""

    SUM = "sum"
    AVG = "avg"
    COUNT = "count"
    MIN = "min"
    MAX = "max"
    FIRST = "first"
    LAST = "last"


class RetryStrategy(StrEnum):
    """How the wait between attempts grows."""

    EXPONENTIAL = "exponential"
    FIXED = "fixed"
    NONE = "none"


class DeadLetterBackend(StrEnum):
    """Where dead letters are, beside the ledger's table."""

    POSTGRESQL = "postgresql"
    KAFKA = "kafka"
    FILES = "files"


class LetterPartitions(StrEnum):
    """By what the folders of dead letters' files are divided."""

    DATE = "date"
    HOUR = "hour"
    PIPELINE = "pipeline"


_EXPONENTIAL = {"exponential-backoff": RetryStrategy.EXPONENTIAL}
_NO_RETRY = {"no-retry": RetryStrategy.NONE, "fixed-delay": RetryStrategy.FIXED}
_LATE = {
    "log-drop": LateDataStrategy.LOG_AND_DROP,
    "dlq": LateDataStrategy.SEND_TO_DLQ,
    "separate": LateDataStrategy.SEPARATE_STREAM,
}

_BACKENDS = {
    "postgres": DeadLetterBackend.POSTGRESQL,
    "database": DeadLetterBackend.POSTGRESQL,
    "s3": DeadLetterBackend.FILES,
    "file": DeadLetterBackend.FILES,
}

PipelineModeText = Annotated[PipelineMode, spelled(PipelineMode), any_case("streaming", "batch")]
OutputModeText = Annotated[OutputMode, spelled(OutputMode), any_case("append", "update", "complete")]
WriteModeText = Annotated[WriteMode, spelled(WriteMode), any_case("append", "overwrite", "upsert")]
WriteStrategyText = Annotated[WriteStrategy, spelled(WriteStrategy), any_case("auto", "single", "staged", "two_phase")]
OnConflictText = Annotated[OnConflict, spelled(OnConflict), any_case("update", "nothing")]
SchemaEvolutionText = Annotated[SchemaEvolution, spelled(SchemaEvolution), any_case("strict", "add_columns", "widen")]
AggregationFunctionText = Annotated[
    AggregationFunction, spelled(AggregationFunction), any_case(*(member.value for member in AggregationFunction))
]
LateDataStrategyText = Annotated[
    LateDataStrategy,
    spelled(LateDataStrategy, _LATE),
    PlainSerializer(lambda strategy: fold(strategy.value), return_type=str),
    any_case("drop", "loganddrop", "sendtodlq", "separatestream", *_LATE),
]
RetryStrategyText = Annotated[
    RetryStrategy,
    spelled(RetryStrategy, _EXPONENTIAL | _NO_RETRY),
    any_case("exponential", "fixed", "none", *_EXPONENTIAL, *_NO_RETRY),
]
DeadLetterBackendText = Annotated[
    DeadLetterBackend,
    spelled(DeadLetterBackend, _BACKENDS),
    any_case(*(member.value for member in DeadLetterBackend), *_BACKENDS),
]
LetterPartitionsText = Annotated[LetterPartitions, spelled(LetterPartitions), any_case("date", "hour", "pipeline")]
