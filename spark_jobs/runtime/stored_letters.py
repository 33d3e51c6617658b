"""Dead letters on their way from PostgreSQL into a Spark job. Executors import this: neither pydantic nor psycopg."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.rows import LETTER_ID
from spark_jobs.sinks.copying import Session, transaction

_OTHER_THAN_TEXT = {"raw_key": "BINARY", "raw_value": "BINARY", "attempt": "INT"}
_QUESTION = "etl.letters.{}"


def stored_letters(
    spark: SparkSession, session: Session, name: str, columns: Sequence[str], *, once: bool = False
) -> DataFrame:
    """Return the letters that a job asks for, as PostgreSQL has them, read by one task: their ids, and ``columns``.

    :param name: under which :func:`asking` has the question, see
        :func:`~spark_jobs.sinks.replay_plans.letters_query`; it must ask for these columns.
    :param once: whether a task that is run a second time fails: what the first one did with them stays done.
    """
    types = [f"{column} {_OTHER_THAN_TEXT.get(column, 'STRING')}" for column in columns]
    return spark.range(0, 1, 1, 1).mapInArrow(
        _reading(session, name, once=once), ", ".join([f"{LETTER_ID} STRING", *types])
    )


@contextmanager
def asking(spark: SparkSession, questions: Mapping[str, str]) -> Iterator[None]:
    """Let the jobs that this thread starts within the block read the letters of these questions, by name.

    A DataFrame is put together once, some hundred calls to the JVM; each micro-batch asks for letters of its own.
    """
    context = spark.sparkContext
    for name, question in questions.items():
        context.setLocalProperty(_QUESTION.format(name), question)
    try:
        yield
    finally:
        for name in questions:
            context.setLocalProperty(_QUESTION.format(name), None)  # type: ignore[arg-type] # Spark's way to remove one


def _reading(
    session: Session, name: str, *, once: bool
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        question = context.getLocalProperty(_QUESTION.format(name)) if context else None
        if question is None or context is None:
            raise RuntimeError(f"This job asks for no letters {name!r}")
        if once and context.attemptNumber() > 0:
            raise RuntimeError("A task that was lost may have sent some of the letters' records: no other sends them")
        # What comes in says nothing. The server is asked before it is waited for.
        with transaction(session) as cursor:
            yield from cursor.stream(question)
            cursor.run("COMMIT")
        for _ in batches:
            continue

    return read
