"""Which copy of the dead letters a pipeline asks for."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import SparkSession

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.config.enumerations import DeadLetterBackend
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.sinks.letter_copy import LetterCopy
from spark_jobs.sinks.letter_files import LetterFiles
from spark_jobs.sinks.letter_topic import LetterTopic


def build_copy(spark: SparkSession, config: PipelineConfig, secrets: Mapping[str, str]) -> LetterCopy | None:
    """Return the copy; None where the ledger's table is all there is.

    :param secrets: options that come from the copy's connection; never shown.
    :raises ConfigError: a setting is missing, which a connection might have had.
    """
    handling = config.error_handling
    queue = handling.dead_letter_queue if handling else None
    if queue is None or queue.backend is DeadLetterBackend.POSTGRESQL:
        return None
    if queue.backend is DeadLetterBackend.KAFKA and queue.topic_name:
        brokers = {"kafka.bootstrap.servers": queue.brokers} if queue.brokers else {}
        return LetterTopic(spark, queue.topic_name, {**secrets, **queue.options, **brokers})
    if queue.backend is DeadLetterBackend.FILES and queue.folder:
        return LetterFiles(spark, queue.folder, queue.partitions, {**queue.options, **secrets})
    raise ConfigError(
        "errorHandlingConfig.dlqConfig is incomplete",
        expected="a topic for kafka, a bucketPath for files",
        cure="Add it",
    )
