"""Where rows go."""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

from spark_jobs.contracts.config.enumerations import (
    OnConflict,
    OnConflictText,
    SchemaEvolution,
    SchemaEvolutionText,
    WriteMode,
    WriteModeText,
    WriteStrategy,
    WriteStrategyText,
)
from spark_jobs.contracts.config.problems import fold
from spark_jobs.contracts.config.section import Duration, Flag, Int, Names, Number, Section, StringMap, Text, mismatch

SINKS = ("postgresql",)
PLANNED_SINKS = ("kafka", "s3", "redshift", "mysql", "file", "delta")
CONNECTION_PARAMS = (
    *("host", "hostaddr", "port", "database", "dbname", "user", "connect_timeout", "sslmode", "sslrootcert", "sslcert"),
    *(
        "sslkey",
        "sslcrl",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "gssencmode",
        "channel_binding",
        "require_auth",
    ),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("target_session_attrs", "load_balance_hosts", "batchsize"),
)
_IDENTIFIER = re.compile(r'"(?:[^"]|"")+"|[^".\s]+')
LONGEST_IDENTIFIER = 63


class TableName(NamedTuple):
    """A table of PostgreSQL. Without a schema, the connection's search path decides."""

    schema: str | None
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table


def parse_table(text: str) -> TableName:
    """Return schema and table of ``table``, ``schema.table``, or quoted as in SQL: ``"odd schema"."odd.table"``.

    :raises ValueError: the text is no such name; the message says why.
    """
    parts, position = [], 0
    while position <= len(text):
        match = _IDENTIFIER.match(text, position)
        if match is None or (match.end() < len(text) and text[match.end()] != "."):
            raise ValueError('odd names are quoted as in SQL: "\\"my.schema\\".\\"my table\\""')
        part = match.group().rstrip()
        parts.append(part[1:-1].replace('""', '"') if part.startswith('"') else part)
        position = match.end() + 1
    if len(parts) > 2:
        raise ValueError("the database is the connection's; write schema.table")
    if too_long := [part for part in parts if len(part.encode(errors="replace")) > LONGEST_IDENTIFIER]:
        raise ValueError(f"PostgreSQL's names have at most 63 bytes; this one has {len(too_long[0].encode())}")
    return TableName(parts[0] if len(parts) == 2 else None, parts[-1])


def _table(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise mismatch("a table: table or schema.table")
    try:
        parse_table(value.strip())
    except ValueError as error:
        raise mismatch("a table: table or schema.table", str(error)) from None
    return value.strip()


def _sink_type(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise mismatch("a sink: postgresql")
    known = {fold(name): name for name in (*SINKS, *PLANNED_SINKS)} | {"postgres": "postgresql"}
    return known.get(fold(value), value.strip())


Table = Annotated[str, BeforeValidator(_table), WithJsonSchema({"type": "string", "minLength": 1})]
SinkType = Annotated[
    str, BeforeValidator(_sink_type), WithJsonSchema({"anyOf": [{"enum": list(SINKS)}, {"type": "string"}]})
]


class Load(Section):
    """The target table and how rows are written to it."""

    sink_type: SinkType = Field(description="`postgresql`.")
    table: Table = Field(description="`table` or `schema.table`; odd names quoted as in SQL.")
    schema_name: Text | None = Field(
        None, description="The name of a schema that the result must have. Not supported yet."
    )
    write_mode: WriteModeText = Field(WriteMode.APPEND, description="`append`, `overwrite` or `upsert`.")
    keys: Names = Field(default=(), description="`upsert`: the columns that identify a row.")
    order_column: Text | None = Field(
        None,
        description="`upsert`: of rows with the same key the one with the highest value wins, in the micro-batch and "
        "against the row in the table (NULL is the lowest). Without it the last one of the micro-batch wins.",
    )
    update_columns: Names = Field(
        default=(),
        description="`upsert`: the columns that are updated where the key is there; all but the keys if unset.",
    )
    on_conflict: OnConflictText = Field(
        OnConflict.UPDATE, description="`upsert`: `update`, or `nothing` to leave rows alone whose key is there."
    )
    delete_marker: Text | None = Field(
        None,
        description="`upsert`: a BOOLEAN column of the result that is not written; where it is true, the row of the "
        "key is deleted.",
    )
    batch_column: Text | None = Field(
        None,
        description="`append`: a text column beside those of the result, in which each row names the micro-batch that "
        "wrote it: `<query id>/<batch id>`. With it micro-batches can be reprocessed: their rows are replaced.",
    )
    auto_create_table: Flag = Field(False, description="Create the table from the query's schema where it is missing.")
    connection_params: StringMap = Field(
        default_factory=dict,
        description="What the connection lacks: `host`, `port`, `database`, `user`, `sslmode` and others of libpq. "
        "`batchsize` is accepted and has no effect: rows go by COPY, not by batches of statements. Never secrets.",
    )
    credential_id: Text | None = Field(None, description="The Airflow connection of the database; holds the password.")
    write_strategy: WriteStrategyText = Field(
        WriteStrategy.AUTO, description="`auto`, `single`, `staged` or `two_phase`; exactly once all of them."
    )
    write_parallelism: Int | None = Field(
        None,
        description="Most tasks that write at once, each with a connection of its own; the cluster's cores if unset.",
    )
    schema_evolution: SchemaEvolutionText = Field(
        SchemaEvolution.STRICT,
        description="What happens when the table lacks something: `strict` ends the run; `add_columns` adds missing "
        "columns; `widen` also widens types, without loss only.",
    )
    max_dead_letter_fraction: Number | None = Field(
        None,
        description="Share, from 0 to 1, of a micro-batch's rows that may become dead letters; more end the run with "
        "nothing written, because then the fault is not in the rows. Asked twice: of the unreadable rows among the "
        "rows read, and of the refused rows among those that reached the sink. A transaction with 10,000 refused rows "
        "is judged by what it has seen so far. Unset: 0.5, for batches of 100 rows and more.",
    )
    role: Text | None = Field(
        None,
        description="A role of PostgreSQL to SET for writing: rotated users then own the same prepared transactions.",
    )
    takeover_timeout: Duration = Field(
        "5 seconds",
        description="How long a new run waits for an older driver that is frozen within its commit, before it ends "
        "that driver's session; at most 1 day.",
    )

    @property
    def database_settings(self) -> dict[str, str]:
        """``connection_params`` for libpq: without ``batchsize``, which only means something to JDBC."""
        return {key: value for key, value in self.connection_params.items() if key != "batchsize"}

    @property
    def target(self) -> TableName:
        """The table's schema (None: the search path decides) and name, unquoted."""
        return parse_table(self.table)
