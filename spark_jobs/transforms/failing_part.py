"""Which part of an expression fails on a row, with what of Spark's error conditions, and on which values.

``TryEval`` swallows the error. So of an expression that has failed, the first part in the order of evaluation is looked
for that fails although its own inputs do not, by trying the parts one after the other, in Spark, for the failing rows
only. What kind of expression that is, and what its inputs are, tells the condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from py4j.java_gateway import is_instance_of
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.classic.column import Column as ClassicColumn

from spark_jobs.transforms.try_eval import tried

UNKNOWN = "EXPRESSION_FAILED"
_EXPRESSIONS = "org.apache.spark.sql.catalyst.expressions"
_LONGEST_VALUE = 200
_OVERFLOWS = ("Add", "Subtract", "Multiply", "Divide", "IntegralDivide", "Remainder", "Pmod", "UnaryMinus", "Abs")
_DIVISIONS = {
    "Divide": "DIVIDE_BY_ZERO",
    "IntegralDivide": "DIVIDE_BY_ZERO",
    "Remainder": "REMAINDER_BY_ZERO",
    "Pmod": "REMAINDER_BY_ZERO",
}
_CONDITIONS = {
    "GetArrayItem": "INVALID_ARRAY_INDEX",
    "RaiseError": "USER_RAISED_EXCEPTION",
    "GetTimestamp": "CANNOT_PARSE_TIMESTAMP",
    "ToUnixTimestamp": "CANNOT_PARSE_TIMESTAMP",
    "UnixTimestamp": "CANNOT_PARSE_TIMESTAMP",
}


class FailingPart:
    """Makes the columns that tell the failing part, for expressions over one DataFrame."""

    def __init__(self, spark: SparkSession, df: DataFrame) -> None:
        self._jvm: Any = spark._jvm
        self._gateway: Any = spark.sparkContext._gateway
        self._df = df

    def of(self, text: str) -> Column:
        """Return STRUCT<condition, part, inputs: STRING> for rows on which the expression ``text`` fails."""
        analyzed: Any = self._df.select(F.expr(text).alias("v"))._jdf.queryExecution().analyzed()
        return self._blamed(analyzed.projectList().head().child())

    def _blamed(self, node: Any) -> Column:
        if self._is(node, "RuntimeReplaceable"):
            return self._blamed(node.replacement())
        blamed: Column | None = None
        for reached, child in self._evaluated(node):
            if child.children().isEmpty():
                continue
            fails = self._tried(child).isNull()
            condition = fails if reached is None else reached & fails
            inner = self._blamed(child)
            blamed = F.when(condition, inner) if blamed is None else blamed.when(condition, inner)
        own = self._own(node)
        return own if blamed is None else blamed.otherwise(own)

    def _evaluated(self, node: Any) -> Iterator[tuple[Column | None, Any]]:
        """Yield the parts in the order of their evaluation, each with the condition that it comes to that."""
        if self._is(node, "If") or self._is(node, "CaseWhen"):
            yield from self._branches(_listed(node.children()))
            return
        # Of AND, OR and COALESCE the first part that fails is the one as well: had an earlier one decided, none would
        # have.
        yield from ((None, part) for part in self._parts(node))

    def _parts(self, node: Any) -> list[Any]:
        # What a lambda does cannot be tried without its argument.
        return _listed(node.arguments() if self._is(node, "HigherOrderFunction") else node.children())

    def _branches(self, parts: list[Any]) -> Iterator[tuple[Column | None, Any]]:
        reached: Column | None = None
        while len(parts) > 1:
            condition, value, *parts = parts
            true = F.coalesce(self._tried(condition)["v"], F.lit(False))
            yield reached, condition
            yield (true if reached is None else reached & true), value
            reached = ~true if reached is None else reached & ~true
        yield from ((reached, part) for part in parts)

    def _own(self, node: Any) -> Column:
        # Parts that were not reached may fail as well.
        inputs = [
            F.coalesce(F.substring(self._tried(child)["v"].cast("string"), 1, _LONGEST_VALUE), F.lit("NULL"))
            for child in self._parts(node)
            if not child.foldable()
        ]
        return F.struct(
            self._condition(node).alias("condition"),
            F.lit(str(node.sql())).alias("part"),
            F.concat_ws(", ", *inputs).alias("inputs"),
        )

    def _condition(self, node: Any) -> Column:
        kind = str(node.getClass().getSimpleName())
        if kind == "Cast":
            return self._of_cast(node)
        if kind == "ElementAt":
            zero = F.coalesce(self._column(node.right()).cast("string") == "0", F.lit(False))
            return F.when(zero, "INVALID_INDEX_OF_ZERO").otherwise("INVALID_ARRAY_INDEX_IN_ELEMENT_AT")
        if kind not in _OVERFLOWS:
            return F.lit(_CONDITIONS.get(kind, UNKNOWN))
        found = F.lit(_overflow(str(node.dataType().typeName())))
        if kind not in _DIVISIONS:
            return found
        zero = self._column(node.right()).cast("double") == 0
        return F.when(zero, _DIVISIONS[kind]).otherwise(found)

    def _of_cast(self, node: Any) -> Column:
        source, target = str(node.child().dataType().typeName()), str(node.dataType().typeName())
        decimal = target.startswith("decimal")
        if source != "string":
            return F.lit("NUMERIC_VALUE_OUT_OF_RANGE" if decimal else "CAST_OVERFLOW")
        malformed = F.lit("CAST_INVALID_INPUT")
        if not decimal:
            return malformed
        number = self._column(node.child()).try_cast("double").isNotNull()
        return F.when(number, "NUMERIC_VALUE_OUT_OF_RANGE").otherwise(malformed)

    def _tried(self, node: Any) -> Column:
        return tried(self._jvm, self._column(node))

    def _column(self, node: Any) -> Column:
        return ClassicColumn(self._jvm.org.apache.spark.sql.classic.ExpressionUtils.column(node))

    def _is(self, node: Any, trait: str) -> bool:
        return bool(is_instance_of(self._gateway, node, f"{_EXPRESSIONS}.{trait}"))


def _overflow(kind: str) -> str:
    if kind.startswith("decimal"):
        return "NUMERIC_VALUE_OUT_OF_RANGE"
    return "BINARY_ARITHMETIC_OVERFLOW" if kind in ("byte", "short", "tinyint", "smallint") else "ARITHMETIC_OVERFLOW"


def _listed(sequence: Any) -> list[Any]:
    return [sequence.apply(index) for index in range(sequence.size())]
