"""A pipeline's flow of rows: source, watermark, transforms, aggregation. The same for a stream and for a past range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType, TimestampNTZType, TimestampType

from spark_jobs.contracts.config import (
    AggregationTransform,
    FilterTransform,
    PipelineConfig,
    SelectTransform,
    Streaming,
)
from spark_jobs.contracts.config.transforms import Transform
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.rows import CARRIED, EVENT_TIME, LETTER_ID, OUTCOME, RAW, ROW, SOURCE, Outcome, data_columns, passed
from spark_jobs.sources.base import OffsetRange, Source
from spark_jobs.sources.registry import build_source
from spark_jobs.transforms import careful, registry
from spark_jobs.transforms.aggregation import WindowedAggregation

BOOKS = "etl_books"
"""Name of the observation that counts rows before an aggregation."""


@dataclass(frozen=True)
class Flow:
    """A pipeline's flow, put together once per run.

    :param aggregation: None for a stateless pipeline.
    :param careful: whether a row on which an expression fails is a dead letter. Else it ends the batch's action.
    """

    config: PipelineConfig
    source: Source
    stateless: tuple[Transform, ...]
    aggregation: WindowedAggregation | None
    careful: bool = False

    @classmethod
    def build(cls, spark: SparkSession, config: PipelineConfig, secrets: dict[str, str]) -> Flow:
        """Put the parts together; nothing is read yet.

        :raises ConfigError: for transforms that cannot follow one another.
        """
        last = config.transforms[-1] if config.transforms else None
        aggregation = last if isinstance(last, AggregationTransform) else None
        before = config.transforms[:-1] if aggregation else config.transforms
        if any(isinstance(transform, AggregationTransform) for transform in before):
            raise ConfigError(
                "transforms: something follows the aggregation",
                found=", ".join(transform.transform_type for transform in config.transforms),
                expected="one aggregation at most, as the last transform",
                cure="Move the other transforms before it",
            )
        watermark = streaming_of(config).watermark
        windowed = (
            WindowedAggregation(aggregation, watermark.event_time_column if watermark else None)
            if aggregation
            else None
        )
        return cls(config, build_source(spark, config, secrets), tuple(before), windowed)

    @property
    def streaming(self) -> Streaming:
        """How Spark runs the query."""
        return streaming_of(self.config)

    @property
    def stateful(self) -> bool:
        """Tell whether Spark keeps state for the pipeline."""
        return self.aggregation is not None

    @property
    def sorts(self) -> bool:
        """Tell whether a row that reaches the sink may have another outcome than having passed."""
        if self.aggregation is not None:
            return False
        return self.source.makes_dead_letters or any(registry.sorts(transform) for transform in self.stateless)

    @cached_property
    def streaming_frame(self) -> DataFrame:
        """What the query writes: sorted-out rows of a stateless pipeline, results of an aggregation.

        Put together once, some hundred calls to the JVM; any number of queries may be started on it.
        """
        sorted_out = self.sort_out(self._watermarked(self.source.stream().drop(RAW)))
        if self.aggregation is None:
            return self.without_own_columns(sorted_out)
        return self.aggregation.aggregate(self._observed(sorted_out))

    @cached_property
    def carefully(self) -> Flow:
        """The same flow with care."""
        return self if self.careful else replace(self, careful=True)

    def past_range(self, offsets: OffsetRange) -> DataFrame:
        """Return the sorted-out rows of a past offset range, before any aggregation: the second look."""
        return self.sort_out(self.past_source(offsets))

    def batch_again(self, offsets: OffsetRange) -> DataFrame:
        """Return what a stateless pipeline's :attr:`streaming_frame` gave of an offset range, and what letters need."""
        return self.without_own_columns(self.past_range(offsets))

    def past_source(self, offsets: OffsetRange) -> DataFrame:
        """Return the rows of a past offset range as the source gives them, before any transform."""
        return self._with_carried(self.with_row(self.source.read_range(offsets)))

    def with_row(self, rows: DataFrame) -> DataFrame:
        """Keep the schema's columns, as the source gave them, for the letters of rows that fail on their way."""
        given = [name for name in rows.columns if name not in (*CARRIED, LETTER_ID, *self.source.own_columns)]
        return rows.withColumn(ROW, F.struct(*(F.col(_quoted(name)) for name in given)))

    def sort_out(self, df: DataFrame) -> DataFrame:
        """Apply the stateless transforms; every row keeps its outcome."""
        for number, transform in enumerate(self.stateless):
            df = _checked(df, transform, number, careful_way=self.careful)
        if self.aggregation is not None:
            self.aggregation.check_columns(df)
            df = self.aggregation.sort_out_without_time(df)
        return df

    def result_schema(self) -> StructType:
        """Return the schema of the rows that reach the target, without the carried columns."""
        frame = self.streaming_frame
        return StructType([frame.schema[name] for name in data_columns(frame)])

    def without_own_columns(self, sorted_out: DataFrame) -> DataFrame:
        """Return the sorted-out rows of a stateless pipeline as they reach the sink."""
        selected = any(isinstance(transform, SelectTransform) for transform in self.stateless)
        return sorted_out.drop(*(() if selected else self.source.own_columns))

    def may_ask_for_own_columns(self, more: Mapping[str, str]) -> bool:
        """Tell whether an expression of the pipeline, or one of ``more``, may name a column that the source adds.

        Only a filter or a select whose text has neither such a name nor an asterisk surely does not.
        """
        known = all(isinstance(transform, (FilterTransform, SelectTransform)) for transform in self.stateless)
        if not known or not self.source.own_columns_on_demand:
            return True
        said = [transform.model_dump_json() for transform in self.stateless]
        if self.streaming.watermark is not None:
            said.append(self.streaming.watermark.event_time_column)
        text = " ".join((*said, *more, *more.values())).lower()
        return "*" in text or any(name.lower() in text for name in self.source.own_columns)

    def _watermarked(self, df: DataFrame) -> DataFrame:
        watermark = self.streaming.watermark
        if watermark is None:
            return self._with_carried(df)
        self._check_event_time(df, watermark.event_time_column)
        column = next(name for name in df.columns if name.lower() == watermark.event_time_column.lower())
        # A dead letter may hold a time that could be read: it must not move the watermark, and make good rows late.
        timed = df.withColumn(column, F.when(passed(), F.col(_quoted(column))))
        return self._with_carried(timed.withWatermark(watermark.event_time_column, watermark.delay_threshold))

    def _with_carried(self, df: DataFrame) -> DataFrame:
        watermark = self.streaming.watermark
        where = F.struct(*(F.col(name).alias(name.removeprefix("_")) for name in self.source.coordinates))
        df = df.withColumn(SOURCE, where)
        if watermark is None:
            return df
        # A plain copy would carry the watermark's mark twice; rows that did not pass have no event time.
        return df.withColumn(EVENT_TIME, F.when(passed(), F.col(watermark.event_time_column)))

    @staticmethod
    def _check_event_time(df: DataFrame, column: str) -> None:
        types = {field.name.lower(): field.dataType for field in df.schema.fields}
        found = types.get(column.lower())
        if isinstance(found, TimestampType):
            return
        cure = "Declare the column as TIMESTAMP in the schema"
        if isinstance(found, TimestampNTZType):
            cure += " (Spark has no watermark for TIMESTAMP_NTZ)"
        raise ConfigError(
            f"streamingConfigJson.watermark.eventTimeColumn: {column} cannot carry a watermark",
            found="no such column" if found is None else f"type {found.simpleString()}",
            expected=f"a TIMESTAMP column of the source; it has {', '.join(data_columns(df))}",
            cure=cure,
        )

    @staticmethod
    def _observed(df: DataFrame) -> DataFrame:
        def count(value: Outcome) -> Any:
            return F.count_if(F.col(OUTCOME) == int(value))

        counts = [
            F.count(F.lit(1)).alias("source"),
            count(Outcome.PASSED).alias("passed"),
            count(Outcome.DEAD_LETTER).alias("dead_lettered"),
            count(Outcome.FILTERED).alias("filtered"),
        ]
        if EVENT_TIME in df.columns:
            micros = F.unix_micros(F.when(passed(), F.col(EVENT_TIME)))
            counts += [F.min(micros).alias("event_time_min"), F.max(micros).alias("event_time_max")]
        return df.observe(BOOKS, *counts)


def streaming_of(config: PipelineConfig) -> Streaming:
    """Return the part of the configuration that ``mode`` ``streaming`` requires (validation has seen to it)."""
    if config.streaming is None:
        raise ConfigError("streamingConfigJson is missing", expected="streamingConfigJson, for mode streaming")
    return config.streaming


def _checked(df: DataFrame, transform: Transform, number: int, *, careful_way: bool) -> DataFrame:
    try:
        return careful.apply(df, transform, number) if careful_way else registry.apply(df, transform)
    except AnalysisException as error:
        raise ConfigError(
            f"transforms[{number}] ({transform.transform_type}) cannot be applied",
            found=str(error).splitlines()[0],
            expected=f"SQL over the columns {', '.join(data_columns(df))}",
            cure="Correct the expression or the column's name",
        ) from error


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
