"""The rows of dead letters, on their way to the target again.

Three kinds of letters have three ways in. A raw record is read by the pipeline's own source, as it came, and goes
through the transforms. A row that failed in the transforms and has no raw record enters them as it was. A row that the
target refused, without a raw record, is the target's already. Each letter is one row, and every row knows its letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from spark_jobs.contracts.config import OutputMode
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import RAW_VALUE, ReplayRequest
from spark_jobs.rows import (
    CARRIED,
    EVENT_TIME,
    LETTER,
    LETTER_ID,
    OUTCOME,
    RAW,
    ROW,
    SOURCE,
    Outcome,
    data_columns,
    letter_again,
    outcome,
    passed,
)
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.stored_letters import stored_letters
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.replay_plans import LETTER_VALUES
from spark_jobs.transforms import careful
from spark_jobs.transforms.select import select
from spark_jobs.transforms.try_eval import tried

_CORRUPT = "__corrupt"
_FAILED = "!"
"""In front of the id of a letter whose record could not be repaired."""


class Kind(StrEnum):
    """Where a letter's row enters the pipeline; the value is the condition in SQL, ``{raw}`` that it has a record."""

    RECORD = "{raw}"
    SOURCE_ROW = "NOT {raw} AND i.stage <> 'write'"
    TARGET_ROW = "NOT {raw} AND i.stage = 'write'"

    def condition(self, flow: Flow) -> str:
        """Return the condition over what the letters ``i`` were when they were taken."""
        stages = ["parse"]
        if flow.source.keeps_raw:
            # An aggregation's result is made of many records: what stands in its place is the row's own text.
            stages += ["transform"] if flow.stateful else ["transform", "write"]
        names = ", ".join(f"'{stage}'" for stage in stages)
        return self.value.format(raw=f"(i.stage = 'parse' OR (i.stage IN ({names}) AND i.has_raw_value))")

    def columns(self, flow: Flow, request: ReplayRequest) -> tuple[str, ...]:
        """Return what is read of each letter: all that a letter has would take a quarter of the replay's time."""
        needed = {"raw_value", "parsed_row", "source"}
        repair = ""
        if self is Kind.RECORD:
            repair = request.patch.get(RAW_VALUE, "").lower()
            # The source makes its own columns of these, or does without all of them.
            place = {"raw_key", "raw_headers", "source"}
            asked = flow.may_ask_for_own_columns(request.patch) or any(name in repair for name in place)
            needed = {"raw_value"} | (place if asked else set())
        # A record's repair is an expression over all that is stored of it.
        return tuple(name for name in LETTER_VALUES if name in needed or name in repair)


@dataclass(frozen=True)
class ReplayFrame:
    """Makes the DataFrames of one replay, with the care that the flow has; all its micro-batches share them.

    :param session: how executors read the letters.
    """

    spark: SparkSession
    flow: Flow
    request: ReplayRequest
    session: Session
    _made: dict[Kind, DataFrame] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def carefully(self) -> ReplayFrame:
        """The same with care: a row on which an expression fails is a letter again; else it ends the action."""
        return self if self.flow.careful else replace(self, flow=self.flow.carefully)

    def check(self, kinds: Mapping[Kind, int]) -> None:
        """Return if letters of these kinds can go through the pipeline.

        :param kinds: how many letters there are of each.
        :raises ConfigError: the pipeline keeps state, or a patch names a column that no letter has.
        """
        if self.flow.stateful:
            self._check_stateful(kinds)
        known = {RAW_VALUE} if kinds.get(Kind.RECORD) else set()
        if not self.request.patch.keys() - known:
            return
        for kind, count in kinds.items():
            if count:
                known |= set(self.target.names if kind is Kind.TARGET_ROW else data_columns(self._source_frame))
        unknown = sorted(self.request.patch.keys() - known)
        if unknown and sum(kinds.values()):
            raise ConfigError(
                f"The patch names columns that these letters do not have: {', '.join(unknown)}",
                found=f"columns {', '.join(sorted(known))}",
                expected="columns of the source; of the target for a refused row that has no raw record",
                cure="Correct the names; nothing was replayed",
            )

    def _check_stateful(self, kinds: Mapping[Kind, int]) -> None:
        before = sum(count for kind, count in kinds.items() if kind is not Kind.TARGET_ROW)
        final = self.flow.streaming.output_mode is OutputMode.APPEND
        if before or (kinds.get(Kind.TARGET_ROW) and not final):
            raise ConfigError(
                "The pipeline keeps state: its dead letters cannot be reprocessed beside it",
                found=f"{before} rows from before the aggregation, {kinds.get(Kind.TARGET_ROW, 0)} of its results",
                expected="results of output mode append, which are final",
                cure="Use mode redrive: it sends raw records to their topic again, and the pipeline reads them. A "
                "result that was refused in output mode update is written again with the next change of its group",
            )

    def of(self, kinds: Sequence[Kind]) -> DataFrame:
        """Return the rows of letters of these kinds, sorted out, as they reach the sink.

        Which letters, the job says that reads them: :func:`~spark_jobs.runtime.stored_letters.asking`, by kind.
        """
        frames = [self._rows(kind) for kind in kinds]
        return reduce(DataFrame.unionByName, [frame.select(*self._columns(frame)) for frame in frames])

    @cached_property
    def target(self) -> StructType:
        """The schema of the rows that reach the target, without the carried columns."""
        if self.flow.stateful or not self.flow.source.keeps_raw or self.request.patch.keys() - {RAW_VALUE}:
            return self.flow.result_schema()
        # Put together for the letters anyway: a stream's DataFrame would be made for this alone.
        rows = self._rows(Kind.RECORD)
        return StructType([rows.schema[name] for name in data_columns(rows)])

    def _rows(self, kind: Kind) -> DataFrame:
        if kind in self._made:
            return self._made[kind]
        columns = kind.columns(self.flow, self.request)
        rows = self._ways[kind](stored_letters(self.spark, self.session, kind.name, columns))
        # uuid() and its like have their seed from the analysis: a micro-batch that shared it would have the same ids.
        if rows._jdf.queryExecution().analyzed().deterministic():
            self._made[kind] = rows
        return rows

    @property
    def _ways(self) -> dict[Kind, Callable[[DataFrame], DataFrame]]:
        return {Kind.RECORD: self._records, Kind.SOURCE_ROW: self._source_rows, Kind.TARGET_ROW: self._target_rows}

    def _records(self, letters: DataFrame) -> DataFrame:
        patch = self.request.patch.get(RAW_VALUE)
        if patch is None:
            return self._through_transforms(self.flow.source.read_letters(letters))
        letters = letters.withColumn(RAW_VALUE, F.col("raw_value").cast("string"))
        if not self.flow.careful:
            repaired = letters.withColumn("raw_value", F.expr(patch).cast("binary"))
            return self._through_transforms(self.flow.source.read_letters(repaired))
        return self._through_transforms(
            _unless_failed(self.flow.source.read_letters(self._tried(letters, patch)), patch)
        )

    def _tried(self, letters: DataFrame, patch: str) -> DataFrame:
        # In a branch that Spark cannot decide beforehand: see spark_jobs.transforms.try_eval.
        branch = F.pmod(F.hash(F.col(LETTER_ID)), F.lit(2)) < 2
        done = letters.withColumn("__tried", F.when(branch, tried(self.spark._jvm, F.expr(patch).cast("binary"))))
        marked = F.when(F.col("__tried").isNull(), F.concat(F.lit(_FAILED), F.col(LETTER_ID)))
        return done.withColumns({"raw_value": F.col("__tried")["v"], LETTER_ID: F.coalesce(marked, F.col(LETTER_ID))})

    def _source_rows(self, letters: DataFrame) -> DataFrame:
        own, schema = self.flow.source.own_columns, self._source_frame.schema
        rows = StructType([schema[name] for name in data_columns(self._source_frame) if name not in own])
        # The source's own columns are the row's coordinates.
        places = StructType([StructField(name.removeprefix("_"), schema[name].dataType) for name in own])
        place = F.from_json("source", places)
        given = {name: place[name.removeprefix("_")] for name in own}
        return self._through_transforms(_from_json(letters, rows, "transform", given))

    def _target_rows(self, letters: DataFrame) -> DataFrame:
        # The row was to be another micro-batch's; now it is one of the micro-batch that brings it home.
        batch = self.flow.config.load.batch_column
        return self._patched(self._carried(_from_json(letters, self.target, "write", ignored=batch)))

    def _through_transforms(self, rows: DataFrame) -> DataFrame:
        return self.flow.without_own_columns(self.flow.sort_out(self._patched(self._carried(rows))))

    def _carried(self, rows: DataFrame) -> DataFrame:
        rows = self.flow.with_row(rows)
        rows = rows.withColumn(SOURCE, F.struct(F.col(LETTER_ID).alias("dead_letter_id"))).drop(LETTER_ID)
        watermark = self.flow.streaming.watermark
        if watermark is None:
            return rows
        time = F.col(watermark.event_time_column) if watermark.event_time_column in rows.columns else F.lit(None)
        return rows.withColumn(EVENT_TIME, F.when(passed(), time).cast("timestamp"))

    def _patched(self, rows: DataFrame) -> DataFrame:
        columns = data_columns(rows)
        patch = {name: text for name, text in self.request.patch.items() if name in columns}
        if not patch:
            return rows
        types = {name: rows.schema[name].dataType.simpleString() for name in patch}
        repaired = {name: f"CAST(({text}) AS {types[name]})" for name, text in patch.items()}
        chosen = {name: repaired.get(name, _quoted(name)) for name in columns}
        return careful.select(rows, chosen, "patch") if self.flow.careful else select(rows, chosen)

    def _columns(self, frame: DataFrame) -> list[Column]:
        # The letter of a row that fails again names the one it was, in front of whatever else it says.
        known = F.concat(F.lit('{"dead_letter_id":"'), F.col(SOURCE)["dead_letter_id"], F.lit('",'))
        text = F.concat(known, F.substring(F.col(LETTER), 2, 2**31 - 1))
        named = F.when(F.col(LETTER).isNotNull(), text).alias(LETTER)
        # A letter keeps the record that it has; the row it stood for is not asked for again.
        carried = [
            named if name == LETTER else F.col(name)
            for name in CARRIED
            if name in frame.columns and name not in (RAW, ROW)
        ]
        return [*(F.col(_quoted(name)) for name in self.target.names), *carried]

    @cached_property
    def _source_frame(self) -> DataFrame:
        return self.flow.source.stream()


def _from_json(
    letters: DataFrame,
    schema: StructType,
    stage: str,
    more: Mapping[str, Column] | None = None,
    ignored: str | None = None,
) -> DataFrame:
    """Return the rows that letters hold as JSON. One that is not of the schema's columns and types fails again.

    :param more: columns beside them. :param ignored: a column that the row may have had, and that is not asked for.
    """
    # Bytes stand in base64 where Spark wrote the row, and in hexadecimal where PostgreSQL did.
    read = StructType([*(_as_text(field) for field in schema.fields), StructField(_CORRUPT, StringType())])
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}
    # Where jsonb could not hold the row, its exact text stands beside what could be shown.
    text = F.coalesce(F.col("raw_value").cast("string"), F.col("parsed_row"))
    rows = letters.withColumn("parsed_row", text).withColumn("__row", F.from_json("parsed_row", read, options))
    keys = F.json_object_keys("parsed_row")
    keys = keys if ignored is None else F.array_remove(keys, ignored)
    names = F.array(*(F.lit(name) for name in schema.names))
    other = F.concat_ws(", ", F.array_except(keys, names), F.array_except(names, keys))
    problem = (
        F.when(keys.isNull() | F.col("__row").isNull(), F.lit("NO_ROW: the letter holds no row"))
        .when(other != "", F.concat(F.lit("OTHER_COLUMNS: the row was made for other columns: "), other))
        .when(F.col("__row")[_CORRUPT].isNotNull(), F.lit("OTHER_TYPES: the row does not fit the columns' types"))
    )
    problem_class = F.substring_index(F.col("__problem"), ":", 1)
    again = letter_again(stage=stage, error_class=problem_class, message=F.col("__problem"))
    bad = F.col("__problem").isNotNull()
    return rows.withColumn("__problem", problem).select(
        LETTER_ID,
        *(_value(field).alias(field.name) for field in schema.fields),
        *(column.alias(name) for name, column in (more or {}).items()),
        F.when(bad, outcome(Outcome.DEAD_LETTER)).otherwise(outcome(Outcome.PASSED)).alias(OUTCOME),
        F.when(bad, again).alias(LETTER),
    )


def _unless_failed(rows: DataFrame, patch: str) -> DataFrame:
    """Make the rows letters again whose repair has failed, whatever was read instead of their record."""
    failed = F.startswith(F.col(LETTER_ID), F.lit(_FAILED))
    why = F.lit(f"{RAW_VALUE}: {patch} fails on the record")
    again = letter_again(stage="parse", error_class=F.lit("PATCH_FAILED"), message=why)
    return rows.withColumns(
        {
            LETTER: F.when(failed, again).otherwise(F.col(LETTER)),
            OUTCOME: F.when(failed, outcome(Outcome.DEAD_LETTER)).otherwise(F.col(OUTCOME)),
            LETTER_ID: F.ltrim(F.col(LETTER_ID), F.lit(_FAILED)),
        }
    )


def _as_text(field: StructField) -> StructField:
    return StructField(field.name, StringType()) if isinstance(field.dataType, BinaryType) else field


def _value(field: StructField) -> Column:
    value = F.col("__row")[field.name]
    if not isinstance(field.dataType, BinaryType):
        return value
    return F.when(value.startswith("\\x"), F.unhex(F.substring(value, 3, 2**31 - 1))).otherwise(F.unbase64(value))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
