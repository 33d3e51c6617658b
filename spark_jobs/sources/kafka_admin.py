"""Questions to the broker before a run, through the Kafka client that Spark's connector already brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import SourceUnreachableError

_TIMEOUT_MS = 15_000


def list_topics(spark: SparkSession, client_options: Mapping[str, str]) -> set[str]:
    """Return the names of the broker's topics.

    :raises SourceUnreachableError: no broker answers within 15 seconds.
    """
    admin = _admin(spark, client_options)
    try:
        return set(admin.listTopics().names().get(_TIMEOUT_MS, _milliseconds(spark)))
    except Py4JJavaError as error:
        raise SourceUnreachableError(
            "No Kafka broker answers",
            found=_root_cause(error),
            expected=f"a broker at {client_options.get('bootstrap.servers')}",
            cure="Check extract.connectionParams['kafka.bootstrap.servers'], the network and the credentials",
        ) from error
    finally:
        admin.close()


def earliest_offsets(
    spark: SparkSession, client_options: Mapping[str, str], partitions: list[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """Return the first offset that the broker still has, for each (topic, partition)."""
    jvm: Any = spark._jvm
    admin = _admin(spark, client_options)
    try:
        asked = jvm.java.util.HashMap()
        for topic, partition in partitions:
            key = jvm.org.apache.kafka.common.TopicPartition(topic, partition)
            asked.put(key, jvm.org.apache.kafka.clients.admin.OffsetSpec.earliest())
        answer = admin.listOffsets(asked).all().get(_TIMEOUT_MS, _milliseconds(spark))
        return {(key.topic(), key.partition()): answer[key].offset() for key in answer}
    finally:
        admin.close()


def _admin(spark: SparkSession, client_options: Mapping[str, str]) -> Any:
    jvm: Any = spark._jvm
    settings = jvm.java.util.HashMap()
    for name, value in client_options.items():
        settings.put(name, value)
    settings.put("default.api.timeout.ms", str(_TIMEOUT_MS))
    settings.put("request.timeout.ms", str(_TIMEOUT_MS))
    try:
        return jvm.org.apache.kafka.clients.admin.Admin.create(settings)
    except Py4JJavaError as error:
        raise SourceUnreachableError(
            "The Kafka client cannot be set up",
            found=_root_cause(error),
            cure="Check extract.connectionParams['kafka.…'] and the credentials",
        ) from error


def _milliseconds(spark: SparkSession) -> Any:
    jvm: Any = spark._jvm
    return jvm.java.util.concurrent.TimeUnit.MILLISECONDS


def _root_cause(error: Py4JJavaError) -> str:
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    return f"{cause.getClass().getSimpleName()}: {cause.getMessage()}"
