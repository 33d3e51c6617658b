"""What a source's connection adds to its reader: options that must not stand in a pipeline file."""

from __future__ import annotations

from spark_jobs.contracts.credentials import AirflowConnection
from spark_jobs.contracts.kafka_settings import java_settings


def reader_options(source_type: str, connection: AirflowConnection) -> dict[str, str]:
    """Return Spark's reader options for a connection.

    Kafka: the settings of the client, see :func:`~spark_jobs.contracts.kafka_settings.java_settings`. Files: the extras
    are options of the file system (``fs.s3a.access.key`` …).
    """
    if source_type == "kafka":
        return {f"kafka.{name}": value for name, value in java_settings(connection).items()}
    return {str(name): str(value) for name, value in connection.extra.get_secret_value().items()}
