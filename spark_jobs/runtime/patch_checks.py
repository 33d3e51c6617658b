"""Repairs come from whoever may trigger a replay: expressions over the letter's own row, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import ConfigError

# They call any static method of Java, the one that reads the process's environment among them.
_JAVA: Final = frozenset({"java_method", "reflect", "try_reflect"})


def check_patch(spark: SparkSession, patch: Mapping[str, str]) -> None:
    """Return if every repair is an expression over the row.

    :raises ConfigError: one is no SQL, reads other data by a subquery, or calls Java.
    """
    for column, text in patch.items():
        for node in _nodes(_parsed(spark, column, text)):
            kind = node.getClass().getSimpleName()
            if kind.endswith(("Subquery", "Exists", "ListQuery")):
                raise _refused(column, text, "a subquery")
            if kind == "UnresolvedFunction":
                name = str(node.nameParts().last()).lower()
                if name in _JAVA:
                    raise _refused(column, text, f"the function {name}")


def _parsed(spark: SparkSession, column: str, text: str) -> Any:
    jsession: Any = spark._jsparkSession
    try:
        return jsession.sessionState().sqlParser().parseExpression(text)
    except Py4JJavaError as error:
        raise ConfigError(
            f"The repair of {column} is no SQL expression",
            found=f"{text} ({str(error.java_exception.getMessage()).strip().splitlines()[0]})",
            expected="an expression over the columns, such as abs(quantity)",
        ) from error


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    children = node.children()
    for number in range(children.size()):
        yield from _nodes(children.apply(number))


def _refused(column: str, text: str, what: str) -> ConfigError:
    return ConfigError(
        f"The repair of {column} reaches beyond the dead letter",
        found=f"{text}, with {what}",
        expected="an expression over the letter's own columns",
        cure="Join other data in the pipeline's transforms, and replay with those",
    )
