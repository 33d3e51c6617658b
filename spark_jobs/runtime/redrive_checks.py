"""Whether records of dead letters can be sent to their topic again: asked before the first is sent, and in dry runs."""

from __future__ import annotations

from collections.abc import Mapping, Set

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import RAW_VALUE
from spark_jobs.rows import LETTER_ID
from spark_jobs.sources.kafka_admin import Partition, earliest_offsets, latest_offsets, list_partitions, list_topics
from spark_jobs.transforms.try_eval import expression_failed, tried

_NAMED = 5


def require_partitions(spark: SparkSession, client_options: Mapping[str, str], places: Set[Partition]) -> None:
    """Return if the broker has all these topics and partitions.

    :raises ConfigError: some are gone. :raises SourceUnreachableError: no broker answers.
    """
    topics = {topic for topic, _ in places}
    there = topics & list_topics(spark, client_options)
    missing = sorted(places - (list_partitions(spark, client_options, there) if there else set()))
    if missing:
        named = ", ".join(f"{topic}/{number}" for topic, number in missing[:_NAMED])
        raise ConfigError(
            "Topics or partitions that dead letters came from are gone",
            found=f"{named}{' …' if len(missing) > _NAMED else ''}",
            expected="the partitions in which the records were, to which they go back",
            cure="Create them again, or use mode reprocess, which needs no topic; nothing was sent",
        )


def require_traces(spark: SparkSession, client_options: Mapping[str, str], start: Mapping[Partition, int]) -> None:
    """Return if the broker still has all records from these offsets on: redrives that did not end sent theirs there.

    :raises ConfigError: some are gone, by retention or with their topic: nobody can tell which letters were sent.
    """
    there = list_partitions(spark, client_options, list_topics(spark, client_options) & {topic for topic, _ in start})
    asked = sorted(start.keys() & there)
    earliest = earliest_offsets(spark, client_options, asked)
    latest = latest_offsets(spark, client_options, asked)
    gone = [one for one in sorted(start) if one not in there or not earliest[one] <= start[one] <= latest[one]]
    if not gone:
        return
    named = ", ".join(f"{topic}/{number} from offset {start[topic, number]}" for topic, number in gone[:_NAMED])
    raise ConfigError(
        "What a redrive that did not end has sent cannot be looked up any more",
        found=f"{named}: retention has taken these records, or the topic was made anew",
        expected="the records that came since then: by them it is known which letters were sent",
        cure="Look whether the rows of these letters have arrived. Discard those that have, and replay the others with "
        "--not-sent (not_sent), by redrive or reprocess; nothing was sent",
    )


def repaired(patch: str) -> Column:
    """Return the record's new value. ``patch`` is an expression over ``_value``, the old one as text."""
    return F.expr(patch).cast("binary")


def require_repairable(letters: DataFrame, patch: str) -> None:
    """Return if the repair gives every letter's record a value.

    :param letters: with ``_value`` and their ids.
    :raises ConfigError: it fails, or is NULL: a record without a value would delete its key in a compacted topic.
    """
    # In a branch that Spark cannot decide beforehand: see tried.
    done = F.when(F.length(LETTER_ID) > 0, tried(letters.sparkSession._jvm, repaired(patch)))
    unable = letters.filter(done.isNull() | done["v"].isNull())
    counted = unable.agg(F.count(F.lit(1)).alias("letters"), F.min(LETTER_ID).alias("first")).first()
    if counted is None or not counted["letters"]:
        return
    raise ConfigError(
        f"The repair of {RAW_VALUE} gives no record for {counted['letters']} of the letters",
        found=f"{patch}: {_reason(letters, patch, counted['first'])}, for dead letter {counted['first']} first of all",
        expected="an expression that gives each of them a value",
        cure="Correct the repair, or choose other letters by stage, error class or ids; nothing was sent",
    )


def _reason(letters: DataFrame, patch: str, letter: str) -> str:
    try:
        letters.filter(F.col(LETTER_ID) == letter).select(repaired(patch)).collect()
    except PySparkException as error:
        said = expression_failed(error)
        if said is None:
            raise
        return said
    return "NULL"
