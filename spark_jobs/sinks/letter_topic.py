"""Dead letters as records of a Kafka topic, by Spark's own writer: at least once, each with its id.

The value is the record's as it came, else the row as JSON; the key is the record's as it came. What happened stands in
headers, behind the record's own: named as Kafka Connect names them, and ``__etl.errors.…`` for what it has no name for.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import BinaryType, StructField, StructType
from typing_extensions import override

from spark_jobs.contracts.errors import LettersNotPublishedError, LettersUnwelcomeError, SourceUnreachableError
from spark_jobs.sinks.letter_copy import HEADERS, LetterCopy, LettersBatch
from spark_jobs.sinks.letter_rows import topic_rows
from spark_jobs.sources.kafka_admin import list_topics, require_connector

_BROKERS = "kafka.bootstrap.servers"
# The batch's transaction is open meanwhile: a broker that is down is to be known soon.
_DEFAULTS = {
    "kafka.max.block.ms": "30000",
    "kafka.request.timeout.ms": "15000",
    "kafka.delivery.timeout.ms": "30000",
}
# A letter counts as written when all replicas in sync have it.
_REQUIRED = {"kafka.acks": "all"}


class LetterTopic(LetterCopy):
    """A topic, which must exist.

    :param options: options of Spark's writer, secrets among them; never shown.
    """

    schema = StructType(
        [StructField("key", BinaryType()), StructField("value", BinaryType()), StructField("headers", HEADERS)]
    )
    make_rows = staticmethod(topic_rows)

    def __init__(self, spark: SparkSession, topic: str, options: Mapping[str, str]) -> None:
        self._spark = spark
        self._topic = topic
        given = {name.lower() for name in options}
        defaults = {name: value for name, value in _DEFAULTS.items() if name not in given}
        kept = {name: value for name, value in options.items() if name.lower() not in _REQUIRED}
        self._options = {**defaults, **kept, **_REQUIRED}

    @property
    @override
    def place(self) -> str:
        return f"the Kafka topic {self._topic}"

    @override
    def check(self) -> None:
        require_connector(self._spark)
        brokers = self._options.get(_BROKERS)
        if not brokers:
            raise LettersUnwelcomeError(
                "The copy of the dead letters has no brokers",
                expected="errorHandlingConfig.dlqConfig.bootstrapServers, or a host in its connection",
                cure="Name the brokers as host:port,host:port",
            )
        try:
            existing = list_topics(self._spark, {name[6:]: value for name, value in self._options.items()})
        except SourceUnreachableError as error:
            raise LettersNotPublishedError(
                "The brokers of the dead letters' topic do not answer",
                found=error.found,
                expected=f"a broker at {brokers}",
                cure="Check errorHandlingConfig.dlqConfig, the network and the credentials; the run has not begun",
            ) from error
        if self._topic not in existing:
            raise LettersUnwelcomeError(
                f"The Kafka topic {self._topic} of the dead letters does not exist",
                found=f"topics {', '.join(sorted(existing)[:20]) or '(none)'}",
                expected=f"errorHandlingConfig.dlqConfig.topic = {self._topic}",
                cure="Create the topic, or correct its name; the run has not begun",
            )

    @override
    def write(self, rows: DataFrame, batch: LettersBatch) -> None:
        rows.write.format("kafka").option("topic", self._topic).options(**self._options).save()
