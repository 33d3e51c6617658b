"""What a source's connection adds to its reader: options that must not stand in a pipeline file."""

from __future__ import annotations

from spark_jobs.contracts.credentials import AirflowConnection

_LOGIN_MODULES = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
# librdkafka's names, which Airflow's Kafka connections use, and the Java client's way to say the same.
_RENAMED = {"sasl.mechanisms": "sasl.mechanism"}


def reader_options(source_type: str, connection: AirflowConnection) -> dict[str, str]:
    """Return Spark's reader options for a connection.

    Kafka: the extras are client settings, with or without the prefix ``kafka.``; user and password (or
    ``sasl.username`` and ``sasl.password``) become the client's ``sasl.jaas.config``. Files: the extras are options of
    the file system (``fs.s3a.access.key`` …).
    """
    extra = {str(name): str(value) for name, value in connection.extra.get_secret_value().items()}
    return _kafka(connection, extra) if source_type == "kafka" else extra


def _kafka(connection: AirflowConnection, extra: dict[str, str]) -> dict[str, str]:
    settings = {
        _RENAMED.get(name, name): value for name, value in ((n.removeprefix("kafka."), v) for n, v in extra.items())
    }
    user = settings.pop("sasl.username", None) or connection.login
    secret = connection.password.get_secret_value() if connection.password else None
    password = settings.pop("sasl.password", None) or secret
    module = _LOGIN_MODULES.get(settings.get("sasl.mechanism", "").upper())
    if user and password and module and "sasl.jaas.config" not in settings:
        settings["sasl.jaas.config"] = f"{module} required username={_quoted(user)} password={_quoted(password)};"
    if connection.host and "bootstrap.servers" not in settings:
        settings["bootstrap.servers"] = f"{connection.host}:{connection.port}" if connection.port else connection.host
    return {f"kafka.{name}": value for name, value in settings.items()}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
