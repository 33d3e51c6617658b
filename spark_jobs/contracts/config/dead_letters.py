"""Where dead letters are copied to, beside the ledger's table that always has them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.config.enumerations import (
    DeadLetterBackend,
    DeadLetterBackendText,
    LetterPartitions,
    LetterPartitionsText,
)
from spark_jobs.contracts.config.section import Flag, Section, StringMap, Text

_BROKERS = "bootstrap.servers"


class DeadLetterQueue(Section):
    """A copy of the dead letters for other readers. PostgreSQL's table ``dead_letter`` has all of them in any case."""

    also_spelled: ClassVar[Mapping[str, str]] = {"type": "dlqType"}

    enabled: Flag = Field(True, description="Whether there is a copy; the table `dead_letter` has all letters always.")
    dlq_type: DeadLetterBackendText | None = Field(
        None,
        description="`kafka`, `files` (also spelled `s3`) or `postgresql`, which is the table alone; also spelled "
        "`type`.",
    )
    credential_id: Text | None = Field(None, description="The Airflow connection that holds the copy's secrets.")
    bootstrap_servers: Text | None = Field(None, description="Kafka: the brokers; or in `config`.")
    topic: Text | None = Field(None, description="Kafka: the topic, which must exist; or in `config`.")
    bucket_path: Text | None = Field(
        None, description="Files: the folder, `s3a://`, `gs://` or local, that Spark can reach; or in `config`."
    )
    partition_by: LetterPartitionsText | None = Field(
        None, description="Files: folders by `date` (the default), `hour` or `pipeline`."
    )
    config: StringMap = Field(
        default_factory=dict,
        description="The backend's own options: settings of Kafka's producer, options of Spark's Parquet writer and "
        "of the file system. Never secrets.",
    )

    def option(self, name: str) -> str | None:
        """Return one of ``config``; neither case nor a prefix ``kafka.`` makes a difference."""
        return next((value for key, value in self.config.items() if plain(key) == plain(name)), None)

    @property
    def backend(self) -> DeadLetterBackend:
        """Where the copy goes; ``postgresql`` where there is none."""
        return self.dlq_type if self.enabled and self.dlq_type else DeadLetterBackend.POSTGRESQL

    @property
    def brokers(self) -> str | None:
        """Kafka's brokers, as far as the file names them: a connection may."""
        return self.bootstrap_servers or self.option(_BROKERS) or self.option("bootstrapServers")

    @property
    def topic_name(self) -> str | None:
        """Kafka's topic."""
        return self.topic or self.option("topic")

    @property
    def folder(self) -> str | None:
        """The folder of the files."""
        return self.bucket_path or self.option("bucketPath")

    @property
    def partitions(self) -> LetterPartitions:
        """How the files' folders are divided."""
        return self.partition_by or LetterPartitions.DATE

    @property
    def options(self) -> dict[str, str]:
        """``config`` without what has a setting of its own; Kafka's with their prefix, as Spark wants them."""
        own = {plain(name) for name in (_BROKERS, "bootstrapServers", "topic", "bucketPath")}
        left = {name: value for name, value in self.config.items() if plain(name) not in own}
        if self.dlq_type is not DeadLetterBackend.KAFKA:
            return left
        return {f"kafka.{name[6:] if name.lower().startswith('kafka.') else name}": v for name, v in left.items()}


def plain(name: str) -> str:
    """Return an option's name without case and prefix."""
    return name.lower().removeprefix("kafka.")
