"""``select`` and ``filter`` with care: a row on which an expression fails is a dead letter, and the others go on.

The quick way evaluates the expressions as they are, and the first row that fails ends the batch's action; then the
batch is done again like this. All expressions of a transform are tried at once, in one ``TryEval``; only of a row that
fails is it found out which one it was, and why (:mod:`spark_jobs.transforms.failing_part`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.contracts.config import FilterTransform, SelectTransform
from spark_jobs.contracts.config.transforms import Transform
from spark_jobs.rows import CARRIED, LETTER, OUTCOME, Outcome, outcome, passed, transform_letter
from spark_jobs.transforms import registry
from spark_jobs.transforms.failing_part import FailingPart
from spark_jobs.transforms.select import is_bare_column
from spark_jobs.transforms.try_eval import still_on_its_way, tried, try_eval

_TRIED = "__tried"


def apply(df: DataFrame, transform: Transform, number: int) -> DataFrame:
    """Apply one stateless transform; those of other packages as they are.

    :param number: the transform's place in the pipeline, for the letters.
    """
    where = f"transforms[{number}].parameters"
    if isinstance(transform, SelectTransform):
        return select(df, transform.columns, f"{where}.columns")
    if isinstance(transform, FilterTransform):
        return _filter(df, transform.condition, f"{where}.condition")
    return registry.apply(df, transform)


def select(df: DataFrame, columns: Mapping[str, str], where: str) -> DataFrame:
    """Replace the data columns by ``columns`` (name → SQL expression).

    :param where: what letters call the place of the expressions.
    """
    computed = {name: text for name, text in columns.items() if not is_bare_column(text)}
    places = {name: f"_{number}" for number, name in enumerate(computed)}
    done = _tried(df, {f"{where}.{name}": text for name, text in computed.items()}) if computed else df
    chosen = [
        (F.col(_TRIED)[places[name]] if name in places else F.expr(text)).alias(name) for name, text in columns.items()
    ]
    return done.select(*chosen, *[name for name in CARRIED if name in df.columns])


def _filter(df: DataFrame, condition: str, where: str) -> DataFrame:
    done = _tried(df, {where: condition})
    leaves = passed() & ~F.coalesce(F.col(_TRIED)["_0"], F.lit(False))
    return done.withColumn(OUTCOME, F.when(leaves, outcome(Outcome.FILTERED)).otherwise(F.col(OUTCOME))).drop(_TRIED)


def _tried(df: DataFrame, expressions: Mapping[str, str]) -> DataFrame:
    """Add a struct of the expressions' values, and make rows on which one fails dead letters."""
    values = [F.expr(text).alias(f"_{number}") for number, text in enumerate(expressions.values())]
    jvm = df.sparkSession._jvm
    done = df.withColumn(_TRIED, F.when(still_on_its_way(), try_eval(jvm, F.struct(*values))))
    failed = passed() & F.col(_TRIED).isNull()
    # Inside of a lambda Spark interprets: else the code for the few rows that fail would be too long to be compiled
    # together with what all rows need.
    letter = _letter(df, expressions)
    envelope = F.transform(F.array(F.lit(0)), lambda _: letter)[0]
    return done.withColumns(
        {
            LETTER: F.when(failed, envelope).otherwise(F.col(LETTER)),
            OUTCOME: F.when(failed, outcome(Outcome.DEAD_LETTER)).otherwise(F.col(OUTCOME)),
        }
    )


def _letter(df: DataFrame, expressions: Mapping[str, str]) -> Column:
    spark = df.sparkSession
    parts = FailingPart(spark, df)
    blamed: Column | None = None
    for path, text in expressions.items():
        fails = tried(spark._jvm, F.expr(text)).isNull()
        said = _said(path, text, parts.of(text))
        blamed = F.when(fails, said) if blamed is None else blamed.when(fails, said)
    assert blamed is not None  # noqa: S101 - for the type checker
    return transform_letter(df, error_class=blamed["error_class"], message=blamed["message"])


def _said(path: str, text: str, part: Column) -> Column:
    message = F.concat(F.lit(f"{path}: {text} fails in "), part["part"], F.lit(" of "), part["inputs"])
    return F.struct(part["condition"].alias("error_class"), message.alias("message"))
