"""Rules between the settings of the source."""

from __future__ import annotations

from pydantic import ValidationError

from spark_jobs.contracts.config import registry
from spark_jobs.contracts.config.extract import FORMATS, PLANNED_FORMATS, PLANNED_SOURCES, Extract
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location, any_of, nearest, quoted
from spark_jobs.contracts.config.salvage import attempt
from spark_jobs.contracts.config.streaming import Streaming
from spark_jobs.contracts.config.validation import note
from spark_jobs.contracts.errors import ConfigError

_WHERE: Location = ("extract",)
_OPTIONS: Location = ("extract", "connectionParams")
_KAFKA_CHOICES = ("subscribe", "subscribePattern", "assign")
_FORMAT_ALIASES = {"jsonl": "json", "ndjson": "json", "jsonlines": "json", "tsv": "csv", "txt": "csv"}


def check(parts: Parts, document: Document) -> None:
    """Note what does not fit together in ``extract``, and between it and the limits of a micro-batch."""
    extract = parts.extract
    if extract is None:
        return
    attempt(_check_schema, extract, document)
    attempt(_check_kind, extract, document)
    attempt(_check_commit_group, extract, document)
    if parts.streaming:
        attempt(_check_limits, extract, parts.streaming, document)


def _check_kind(extract: Extract, document: Document) -> None:
    match extract.source_type:
        case "kafka":
            _check_kafka(extract, document)
        case "file":
            _check_file(extract, document)
        case "rate":
            _check_rate(extract, document)
        case other if other not in PLANNED_SOURCES:
            _check_registered(extract, document)


def _check_schema(extract: Extract, document: Document) -> None:
    if extract.schema_name and extract.schema_text:
        document.note((*_WHERE, "schema"), "both schema and schemaName", "one of them")
    elif extract.source_type in ("kafka", "file") and not extract.schema_name and not extract.schema_text:
        hint = 'for example "schema": "id BIGINT, name STRING"'
        document.note((*_WHERE, "schemaName"), "nothing", "schemaName or schema: the columns and types of a row", hint)


def _check_kafka(extract: Extract, document: Document) -> None:
    chosen = [name for name in _KAFKA_CHOICES if extract.option(name)]
    if not chosen and not extract.topic:
        document.note((*_WHERE, "topic"), "nothing", "a topic (or the option subscribe, subscribePattern or assign)")
    if len(chosen) > 1:
        document.note(_OPTIONS, " and ".join(chosen), f"one of {', '.join(_KAFKA_CHOICES)}")
    elif extract.topic and chosen and (chosen != ["subscribe"] or extract.option("subscribe") != extract.topic):
        found = f"topic {quoted(extract.topic)} and {chosen[0]} {quoted(str(extract.option(chosen[0])))}"
        document.note((*_WHERE, "topic"), found, "the same in both, or one of them")
    if not extract.option("kafka.bootstrap.servers") and not extract.credential_id:
        near = nearest("kafka.bootstrap.servers", extract.connection_params)
        hint = (
            f"{near.removeprefix('did you mean ').removesuffix('?')} is spelled kafka.bootstrap.servers" if near else ""
        )
        document.note((*_OPTIONS, "kafka.bootstrap.servers"), "nothing", "the brokers: host:port,host:port", hint)
    _refuse_option(extract, "path", "a topic; Kafka has no paths", document)
    for name in ("endingOffsets", "endingTimestamp", "endingOffsetsByTimestamp"):
        _refuse_option(extract, name, "no end: a streaming query reads on from its checkpoint", document)
    _refuse_field(extract.path, "path", 'no path: it belongs to sourceType "file"', document)


def _check_commit_group(extract: Extract, document: Document) -> None:
    if extract.commit_group is None:
        return
    where = (*_WHERE, "commitGroup")
    if extract.source_type != "kafka":
        document.note(where, quoted(extract.commit_group), 'no consumer group: it belongs to sourceType "kafka"')
    elif extract.commit_group == extract.option("kafka.group.id"):
        found = f"{quoted(extract.commit_group)}, the group that Spark itself reads with (kafka.group.id)"
        document.note(where, found, "a group that nobody reads with")


def _check_file(extract: Extract, document: Document) -> None:
    option = extract.option("path")
    if not extract.path and not option:
        document.note((*_OPTIONS, "path"), "nothing", "the directory that the files come into")
    elif extract.path and option and extract.path != option:
        found = f"path {quoted(extract.path)} and the option path {quoted(option)}"
        document.note((*_WHERE, "path"), found, "the same in both, or one of them")
    if extract.format is None:
        document.note((*_OPTIONS, "format"), "nothing", any_of(FORMATS))
    elif extract.format not in (*FORMATS, *PLANNED_FORMATS):
        alias = _FORMAT_ALIASES.get(extract.format)
        hint = f'did you mean "{alias}"?' if alias else nearest(extract.format, FORMATS)
        document.note((*_OPTIONS, _key(extract, "format")), quoted(extract.format), any_of(FORMATS), hint)
    _refuse_field(extract.topic, "topic", 'no topic: it belongs to sourceType "kafka"', document)
    for name in ("ignoreCorruptFiles", "ignoreMissingFiles"):
        _refuse_option(extract, name, "no such option: files would be cut off, or left out, without a word", document)


def _check_rate(extract: Extract, document: Document) -> None:
    expected = "nothing: the rate source makes the columns timestamp and value by itself"
    _refuse_field(extract.schema_name, "schemaName", expected, document)
    _refuse_field(extract.schema_text, "schema", expected, document)
    _refuse_field(extract.topic, "topic", 'no topic: it belongs to sourceType "kafka"', document)
    _refuse_field(extract.path, "path", 'no path: it belongs to sourceType "file"', document)


def _check_registered(extract: Extract, document: Document) -> None:
    location = (*_WHERE, "sourceType")
    if not registry.is_source(extract.source_type):
        names = registry.source_names()
        hint = nearest(extract.source_type, (*names, *PLANNED_SOURCES))
        document.note(location, f"the unknown source {quoted(extract.source_type)}", any_of(names), hint)
        return
    try:
        model = registry.source_parameters(extract.source_type)
        if model is not None:
            model.model_validate(extract.connection_params)
    except ValidationError as error:
        note(error, type(extract), document, _OPTIONS)
    except ConfigError as error:
        document.note(location, error.found, error.expected or "a package that works", error.cure)


def _check_limits(extract: Extract, streaming: Streaming, document: Document) -> None:
    where: Location = ("streamingConfigJson",)
    if streaming.max_files_per_trigger and extract.source_type in ("kafka", "rate"):
        hint = "Kafka: maxRecordsPerTrigger" if extract.source_type == "kafka" else "the option rowsPerBatch"
        document.note(
            (*where, "maxFilesPerTrigger"), f"a limit of files on {extract.source_type}", "no such limit", hint
        )
    if streaming.max_records_per_trigger and extract.source_type in ("file", "rate"):
        hint = "files: maxFilesPerTrigger" if extract.source_type == "file" else "the option rowsPerBatch"
        found = f"a limit of records on {extract.source_type}"
        document.note((*where, "maxRecordsPerTrigger"), found, "no such limit: Spark cannot keep it", hint)
    for name in ("maxOffsetsPerTrigger", "maxFilesPerTrigger"):
        value = extract.option(name)
        if value is not None and not (
            value.strip().isascii() and value.strip().isdigit() and 0 < int(value[:19]) < 2**63
        ):
            document.note((*_OPTIONS, _key(extract, name)), quoted(value), "a whole number, 1 or more")


def _refuse_option(extract: Extract, name: str, expected: str, document: Document) -> None:
    if extract.option(name) is not None:
        document.note((*_OPTIONS, _key(extract, name)), f"the option {name}", expected)


def _refuse_field(value: str | None, name: str, expected: str, document: Document) -> None:
    if value is not None:
        document.note((*_WHERE, name), quoted(value), expected)


def _key(extract: Extract, name: str) -> str:
    return next((key for key in extract.connection_params if key.lower() == name.lower()), name)
