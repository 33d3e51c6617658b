"""Questions to the broker, through the Kafka client that Spark's connector already brings."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, TypeAlias

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import ConfigError, SourceUnreachableError

Partition: TypeAlias = tuple[str, int]
_TIMEOUT_MS = 15_000
_CONNECT_SECONDS = 5.0
# As Kafka's own client reads an address: a protocol and brackets may stand around the host.
_ADDRESS = re.compile(r"^(?:[0-9a-zA-Z\-%._]*://)?\[?([0-9a-zA-Z\-%._:]*)\]?:([0-9]+)$")


def require_connector(spark: SparkSession) -> None:
    """Return when Spark's Kafka connector is on the class path.

    :raises ConfigError: it is not, with the option that brings it.
    """
    jvm: Any = spark._jvm
    try:
        jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(
            "org.apache.spark.sql.kafka010.KafkaSourceProvider"
        )
    except Exception as error:
        version = spark.version
        raise ConfigError(
            "Spark's Kafka connector is not on the class path",
            expected=f"org.apache.spark:spark-sql-kafka-0-10_2.13:{version}",
            cure=f"Start with --packages org.apache.spark:spark-sql-kafka-0-10_2.13:{version}, or give its jars "
            "by --jars",
        ) from error


def list_topics(spark: SparkSession, client_options: Mapping[str, str]) -> set[str]:
    """Return the names of the broker's topics.

    :raises SourceUnreachableError: no broker can be connected to, which is known at once where the connection is
        refused, or none answers within 15 seconds.
    """
    _check_connection(client_options)
    admin = open_admin(spark, client_options)
    try:
        return set(await_answer(spark, admin.listTopics().names(), monotonic() + _TIMEOUT_MS / 1000))
    except Py4JJavaError as error:
        raise _no_answer(client_options, root_cause(error)) from error
    finally:
        admin.close()


def list_partitions(spark: SparkSession, client_options: Mapping[str, str], topics: Iterable[str]) -> set[Partition]:
    """Return the partitions of topics that exist."""
    jvm: Any = spark._jvm
    admin = open_admin(spark, client_options)
    try:
        asked = jvm.java.util.ArrayList()
        for topic in topics:
            asked.add(topic)
        answer = admin.describeTopics(asked).allTopicNames()
        described = await_answer(spark, answer, monotonic() + _TIMEOUT_MS / 1000)
        return {(topic, part.partition()) for topic in described for part in described[topic].partitions()}
    except Py4JJavaError as error:
        raise _no_answer(client_options, root_cause(error)) from error
    finally:
        admin.close()


def earliest_offsets(
    spark: SparkSession, client_options: Mapping[str, str], partitions: list[Partition]
) -> dict[Partition, int]:
    """Return the first offset that the broker still has, for each (topic, partition)."""
    return _offsets(spark, client_options, partitions, "earliest")


def latest_offsets(
    spark: SparkSession, client_options: Mapping[str, str], partitions: list[Partition]
) -> dict[Partition, int]:
    """Return the offset that the next record of each (topic, partition) will have."""
    return _offsets(spark, client_options, partitions, "latest")


def _offsets(
    spark: SparkSession, client_options: Mapping[str, str], partitions: list[Partition], which: str
) -> dict[Partition, int]:
    jvm: Any = spark._jvm
    admin = open_admin(spark, client_options)
    try:
        asked = jvm.java.util.HashMap()
        for topic, partition in partitions:
            key = jvm.org.apache.kafka.common.TopicPartition(topic, partition)
            asked.put(key, getattr(jvm.org.apache.kafka.clients.admin.OffsetSpec, which)())
        answer = await_answer(spark, admin.listOffsets(asked).all(), monotonic() + _TIMEOUT_MS / 1000)
        return {(key.topic(), key.partition()): answer[key].offset() for key in answer}
    finally:
        admin.close()


def open_admin(spark: SparkSession, client_options: Mapping[str, str], timeout_ms: int = _TIMEOUT_MS) -> Any:
    """Return a Kafka ``Admin``, which the caller closes.

    :raises SourceUnreachableError: for options that the client does not take.
    """
    jvm: Any = spark._jvm
    settings = jvm.java.util.HashMap()
    for name, value in client_options.items():
        settings.put(name, value)
    settings.put("default.api.timeout.ms", str(timeout_ms))
    settings.put("request.timeout.ms", str(timeout_ms))
    try:
        return jvm.org.apache.kafka.clients.admin.Admin.create(settings)
    except Py4JJavaError as error:
        raise SourceUnreachableError(
            "The Kafka client cannot be set up",
            found=root_cause(error),
            cure="Check extract.connectionParams['kafka.…'] and the credentials",
        ) from error


def await_answer(spark: SparkSession, future: Any, until: float) -> Any:
    """Return what a ``KafkaFuture`` gives; raise :class:`Py4JJavaError` when that is an error, or comes too late.

    :param until: by the clock of :func:`time.monotonic`.
    """
    jvm: Any = spark._jvm
    left = max(int((until - monotonic()) * 1000), 1)
    return future.get(left, jvm.java.util.concurrent.TimeUnit.MILLISECONDS)


def root_cause(error: Py4JJavaError) -> str:
    """Return the innermost Java exception as ``Class: message``."""
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    return f"{cause.getClass().getSimpleName()}: {cause.getMessage()}"


def _check_connection(client_options: Mapping[str, str]) -> None:
    # Kafka's client goes on trying until its timeout, whatever the reason; a refused connection is known at once.
    refused = []
    for server in client_options.get("bootstrap.servers", "").split(","):
        address = _ADDRESS.match(server.strip())
        if address is None:
            return
        try:
            socket.create_connection((address[1], int(address[2])), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            refused.append(f"{server.strip()}: {error}")
        else:
            return
    raise _no_answer(client_options, "; ".join(refused))


def _no_answer(client_options: Mapping[str, str], found: str) -> SourceUnreachableError:
    return SourceUnreachableError(
        "No Kafka broker answers",
        found=found,
        expected=f"a broker at {client_options.get('bootstrap.servers')}",
        cure="Check extract.connectionParams['kafka.bootstrap.servers'], the network and the credentials",
    )
