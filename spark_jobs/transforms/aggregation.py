"""``aggregation``: tumbling, sliding or un-windowed, with sum, avg, count, min, max, first and last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.contracts.config import Aggregation, AggregationTransform
from spark_jobs.contracts.config.durations import parse_duration
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.rows import LETTER, OUTCOME, Outcome, data_columns, outcome, passed, transform_letter

FUNCTIONS: dict[str, Callable[[Column], Column]] = {
    "sum": F.sum,
    "avg": F.avg,
    "count": F.count,
    "min": F.min,
    "max": F.max,
    "first": F.first,
    "last": F.last,
}
WINDOW_COLUMNS = ("window_start", "window_end")


@dataclass(frozen=True, slots=True)
class WindowedAggregation:
    """An aggregation as the pipeline configures it.

    :param event_time: the watermark's column, None without a watermark.
    """

    config: AggregationTransform
    event_time: str | None

    @property
    def window_column(self) -> str | None:
        """The window's event-time column (the watermark's unless given); None without a window."""
        return (self.config.window_column or self.event_time) if self.config.window_duration else None

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that identify a result row."""
        window = WINDOW_COLUMNS if self.window_column else ()
        return (*window, *self.config.group_by)

    def check_columns(self, df: DataFrame) -> None:
        """Raise :class:`ConfigError` for a column that does not exist."""
        have = data_columns(df)
        wanted = [*self.config.group_by, *([self.window_column] if self.window_column else [])]
        wanted += [item.column for item in self.config.aggregations if item.function != "count"]
        missing = sorted({name for name in wanted if not _has(have, name)})
        if missing:
            raise ConfigError(
                f"The aggregation names columns that do not reach it: {', '.join(missing)}",
                found=f"columns {', '.join(have)}",
                cure="Correct the name, or add the column to the select before the aggregation",
            )

    def sort_out_without_time(self, df: DataFrame) -> DataFrame:
        """Make rows without event time dead letters: Spark's window would drop them without counting."""
        if not self.window_column:
            return df
        missing = passed() & F.col(self.window_column).isNull()
        envelope = transform_letter(
            df,
            error_class=F.lit("NULL_EVENT_TIME"),
            message=F.lit(f"the window column {self.window_column} is null"),
        )
        return df.withColumn(LETTER, F.when(missing, envelope).otherwise(F.col(LETTER))).withColumn(
            OUTCOME, F.when(missing, outcome(Outcome.DEAD_LETTER)).otherwise(F.col(OUTCOME))
        )

    def aggregate(self, df: DataFrame) -> DataFrame:
        """Aggregate the rows that are still on their way."""
        have = data_columns(df)
        groups = [F.col(_quoted(name)) for name in self.config.group_by]
        if self.window_column:
            groups.insert(0, self._window().alias("window"))
        results = [_result(item, have) for item in self.config.aggregations]
        grouped = df.filter(passed()).groupBy(*groups).agg(*results)
        if not self.window_column:
            return grouped
        names = [*self.config.group_by, *(item.output for item in self.config.aggregations)]
        window = [F.col("window.start").alias(WINDOW_COLUMNS[0]), F.col("window.end").alias(WINDOW_COLUMNS[1])]
        return grouped.select(*window, *(F.col(_quoted(name)) for name in names))

    def late(self, watermark_ms: int) -> Column:
        """Return the condition that every window of a row was already closed at ``watermark_ms``.

        A windowed row is late when the end of its latest window is not after the watermark (Spark's
        StateStoreSaveExec); a row grouped by the event time itself when that time is not after it.
        """
        watermark = F.lit(watermark_ms * 1000)
        if not self.window_column:
            if self.event_time in self.config.group_by:
                return passed() & (F.unix_micros(F.col(_quoted(str(self.event_time)))) <= watermark)
            return F.lit(False)
        # Windows start at multiples of the slide since 1970; the latest one that holds the row ends a length later.
        # (F.window itself would remove rows without event time.)
        length = _micros(self.config.window_duration)
        step = _micros(self.config.slide_duration or self.config.window_duration)
        time = F.unix_micros(F.col(_quoted(self.window_column)))
        end = time - F.pmod(time, F.lit(step)) + F.lit(length)
        return passed() & (end <= watermark)

    @property
    def windows_per_row(self) -> int:
        """How many windows a row can be in."""
        if not self.config.slide_duration:
            return 1
        return -(-_micros(self.config.window_duration) // _micros(self.config.slide_duration))

    def _window(self) -> Column:
        column = _quoted(str(self.window_column))
        if self.config.slide_duration:
            return F.window(column, str(self.config.window_duration), self.config.slide_duration)
        return F.window(column, str(self.config.window_duration))


def _result(item: Aggregation, have: Sequence[str]) -> Column:
    if item.function == "count" and not _has(have, item.column):
        return F.count(F.lit(1)).alias(item.output)
    return FUNCTIONS[item.function](F.col(_quoted(item.column))).alias(item.output)


def _has(have: Sequence[str], name: str) -> bool:
    # Spark resolves names without regard to case.
    return name.lower() in {column.lower() for column in have}


def _micros(duration: str | None) -> int:
    return parse_duration(str(duration)) // timedelta(microseconds=1)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
