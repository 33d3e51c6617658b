"""Where rows come from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from spark_jobs.contracts.config.problems import fold
from spark_jobs.contracts.config.schemas import SchemaText
from spark_jobs.contracts.config.section import Section, StringMap, Text, mismatch

SOURCES = ("kafka", "file", "rate")
PLANNED_SOURCES = ("kinesis", "s3", "jdbc", "postgresql", "delta")
FORMATS = ("csv", "json", "parquet")
PLANNED_FORMATS = ("avro", "orc", "text", "xml")
_FRAMEWORK_OPTIONS = ("path", "format")
_ALIASES = {"files": "file", "ratemicrobatch": "rate", "postgres": "postgresql"}


def _source_type(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise mismatch(f"a source: {', '.join(SOURCES)}")
    known = {fold(name): name for name in (*SOURCES, *PLANNED_SOURCES)} | _ALIASES
    return known.get(fold(value), value.strip())


SourceType = Annotated[
    str, BeforeValidator(_source_type), WithJsonSchema({"anyOf": [{"enum": list(SOURCES)}, {"type": "string"}]})
]


class Extract(Section):
    """The source, its schema and its options."""

    source_type: SourceType = Field(description="`kafka`, `file` or `rate`; or a source that a package registers.")
    topic: Text | None = Field(None, description="Kafka: the topic; the same as the option `subscribe`.")
    path: Text | None = Field(None, description="Files: the directory; the same as the option `path`.")
    schema_name: Text | None = Field(
        None, description="The schema of a row (Kafka: of the value) by its name: in `schemas`, or `schemas/NAME.json`."
    )
    schema_text: SchemaText | None = Field(
        None, alias="schema", description="The schema itself, instead of `schemaName`: Spark DDL or Spark's JSON form."
    )
    connection_params: StringMap = Field(
        default_factory=dict,
        description="Options of Spark's reader, handed over as they are; for files also `path` and `format` "
        "(`csv`, `json`, `parquet`). Never secrets.",
    )
    credential_id: Text | None = Field(None, description="The Airflow connection that holds the secrets.")
    commit_group: Text | None = Field(
        None,
        description="Kafka: a consumer group whose offsets follow what the database has committed, for the tools that "
        "show lag. Nothing reads with it.",
    )

    def option(self, name: str) -> str | None:
        """Return one of ``connection_params``; case makes no difference, as in Spark."""
        return next((value for key, value in self.connection_params.items() if key.lower() == name.lower()), None)

    @property
    def format(self) -> str | None:
        """The format of files, in lower case; None when not given."""
        given = self.option("format")
        return given.strip().lower() if given else None

    @property
    def options(self) -> dict[str, str]:
        """What Spark's reader gets: ``connection_params`` without files' path and format; for Kafka plus its topic."""
        framework = _FRAMEWORK_OPTIONS if self.source_type == "file" else ()
        options = {key: value for key, value in self.connection_params.items() if key.lower() not in framework}
        chosen = any(self.option(name) for name in ("subscribe", "subscribePattern", "assign"))
        if self.source_type == "kafka" and self.topic and not chosen:
            options["subscribe"] = self.topic
        return options
