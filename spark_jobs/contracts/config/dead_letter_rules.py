"""Rules between the settings of the dead letters' copy, and between it and the source."""

from __future__ import annotations

from spark_jobs.contracts.config.dead_letters import DeadLetterQueue, plain
from spark_jobs.contracts.config.enumerations import DeadLetterBackend
from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location, quoted
from spark_jobs.contracts.config.salvage import attempt

_WHERE: Location = ("errorHandlingConfig", "dlqConfig")
_OF_KAFKA = ("topic", "bootstrapServers")
_OF_FILES = ("bucketPath", "partitionBy")
_ALL_REPLICAS = ("all", "-1")
_NOT_FOR_KAFKA = {
    "transactional.id": "no transactions: a letter that is sent twice has the same id",
    "key.serializer": "no serializers: keys and values are bytes",
    "value.serializer": "no serializers: keys and values are bytes",
}


def check(parts: Parts, document: Document) -> None:
    """Note what does not fit together in ``errorHandlingConfig.dlqConfig``."""
    queue = parts.error_handling.dead_letter_queue if parts.error_handling else None
    if queue is None or not queue.enabled:
        return
    _check_kind(queue, document)
    match queue.backend:
        case DeadLetterBackend.KAFKA:
            _check_kafka(queue, document)
        case DeadLetterBackend.FILES:
            _check_files(queue, document)
    if parts.extract is not None:
        attempt(_check_not_the_source, queue, parts.extract, document)


def _check_kind(queue: DeadLetterQueue, document: Document) -> None:
    allowed = {DeadLetterBackend.KAFKA: _OF_KAFKA, DeadLetterBackend.FILES: _OF_FILES}.get(queue.backend, ())
    kind = f'dlqType "{queue.dlq_type}"' if queue.dlq_type else "no dlqType, which is the table alone"
    for name in (*_OF_KAFKA, *_OF_FILES):
        if _given(queue, name) and name not in allowed:
            owner = "kafka" if name in _OF_KAFKA else "files"
            document.note((*_WHERE, name), f"{name} with {kind}", f'no {name}: it belongs to dlqType "{owner}"')
    if queue.backend is DeadLetterBackend.POSTGRESQL and queue.credential_id:
        expected = "no credentialId: the table dead_letter is in the target's database"
        document.note((*_WHERE, "credentialId"), f"credentialId with {kind}", expected)


def _given(queue: DeadLetterQueue, name: str) -> bool:
    own = {
        "topic": queue.topic,
        "bootstrapServers": queue.bootstrap_servers,
        "bucketPath": queue.bucket_path,
        "partitionBy": queue.partition_by,
    }
    return own[name] is not None


def _check_kafka(queue: DeadLetterQueue, document: Document) -> None:
    if not queue.topic_name:
        document.note((*_WHERE, "topic"), "nothing", "the topic that gets the dead letters")
    if not queue.brokers and not queue.credential_id:
        document.note((*_WHERE, "bootstrapServers"), "nothing", "the brokers: host:port,host:port")
    for key, value in queue.config.items():
        name, where = plain(key), (*_WHERE, "config", key)
        if name == "acks" and value.strip().lower() not in _ALL_REPLICAS:
            hint = "with less, a batch could commit whose letters a broker then loses"
            document.note(where, quoted(value), "all, which is set already", hint)
        elif name in _NOT_FOR_KAFKA:
            document.note(where, f"the option {key}", _NOT_FOR_KAFKA[name])
    for name, own, other in (
        ("topic", queue.topic, queue.option("topic")),
        ("bootstrapServers", queue.bootstrap_servers, queue.option("bootstrap.servers")),
    ):
        _check_same(name, own, other, document)


def _check_files(queue: DeadLetterQueue, document: Document) -> None:
    if not queue.folder:
        hint = 'for example "bucketPath": "s3a://bucket/dead-letters"'
        document.note((*_WHERE, "bucketPath"), "nothing", "the folder that gets the dead letters", hint)
    _check_same("bucketPath", queue.bucket_path, queue.option("bucketPath"), document)
    if queue.option("path") is not None:
        document.note((*_WHERE, "config", "path"), "the option path", "bucketPath")


def _check_same(name: str, own: str | None, other: str | None, document: Document) -> None:
    if own and other and own != other:
        found = f"{quoted(own)}, and {quoted(other)} in config"
        document.note((*_WHERE, name), found, "the same in both, or one of them")


def _check_not_the_source(queue: DeadLetterQueue, extract: Extract, document: Document) -> None:
    hint = "the pipeline would read its own dead letters, again and again"
    if queue.backend is DeadLetterBackend.KAFKA and extract.source_type == "kafka" and queue.topic_name:
        topics = (extract.topic or extract.option("subscribe") or "").split(",")
        other = queue.brokers and queue.brokers != extract.option("kafka.bootstrap.servers")
        if queue.topic_name in [name.strip() for name in topics] and not other:
            document.note((*_WHERE, "topic"), quoted(queue.topic_name), "another topic than the source's", hint)
    if queue.backend is DeadLetterBackend.FILES and extract.source_type == "file" and queue.folder:
        source = (extract.path or extract.option("path") or "").rstrip("/")
        if source and (queue.folder.rstrip("/") + "/").startswith(f"{source}/"):
            found = f"{quoted(queue.folder)}, in the source's folder"
            document.note((*_WHERE, "bucketPath"), found, "a folder beside the source's", hint)
