"""Schema evolution: what the target table lacks is added, or widened without loss, where the pipeline asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from psycopg import errors, sql
from pyspark.sql.types import DataType, StructType

from spark_jobs.contracts.config import SchemaEvolution, TableName
from spark_jobs.contracts.errors import TargetMismatchError
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.table_columns import TargetColumn, qualified, table_columns
from spark_jobs.sinks.types import PostgresType, column_type, fits

log = logging.getLogger("etl.run")

# What each type may become: every value stays what it is.
_WIDER = {
    "smallint": ("integer", "bigint", "numeric"),
    "integer": ("bigint", "numeric"),
    "bigint": ("numeric",),
    "real": ("double precision",),
    "numeric": ("numeric",),
}
_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19}
_LOCK_TIMEOUT = "10s"


def evolve(conn: Connection, table: TableName, schema: StructType, evolution: SchemaEvolution) -> list[str]:
    """Change the table so that the query fits, as far as ``evolution`` allows; return the changes as SQL.

    All changes or none, in one transaction, before the first batch. Safe when two start at once: the second waits, and
    finds nothing to do. What is not allowed is left to :func:`~spark_jobs.sinks.target.inspect`, which names it.

    :raises TargetMismatchError: the role does not own the table, or something depends on the column.
    """
    if evolution is SchemaEvolution.STRICT:
        return []
    with conn.transaction():
        conn.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
        conn.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"etl create {table.schema}.{table.table}"]
        )
        have = {column.name: column for column in table_columns(conn, table)}
        changes = [change.as_string(conn) for change in _changes(have, schema, evolution)] if have else []
        for change in changes:
            _alter(conn, table, change)
    for change in changes:
        log_event(log, logging.INFO, "table_changed", table=str(table), change=change)
    return changes


def _changes(have: dict[str, TargetColumn], schema: StructType, evolution: SchemaEvolution) -> Iterator[sql.Composed]:
    for field in schema.fields:
        column, wanted = have.get(field.name), column_type(field.dataType)
        if column is None and wanted:
            yield sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(field.name), sql.SQL(wanted))
        elif column is not None and evolution is SchemaEvolution.WIDEN and not fits(field.dataType, column.type):
            # A domain would go, and its rules with it.
            plain = PostgresType.parse(column.declared) == column.type
            wider = _wider(column.type, field.dataType)
            if wider and plain:
                yield sql.SQL("ALTER COLUMN {} TYPE {}").format(sql.Identifier(field.name), sql.SQL(wider))


def _wider(old: PostgresType, wanted: DataType) -> str:
    """Return the type that holds every value of both, empty when none does."""
    new = PostgresType.parse(column_type(wanted))
    if new.base not in _WIDER.get(old.base, ()):
        return ""
    if new.base != "numeric":
        return str(new)
    old_scale, new_scale = old.scale or 0, new.scale or 0
    scale = max(old_scale, new_scale)
    old_whole = _DIGITS.get(old.base, (old.precision or 0) - old_scale)
    return str(PostgresType("numeric", max(old_whole, (new.precision or 0) - new_scale) + scale, scale))


def _alter(conn: Connection, table: TableName, change: str) -> None:
    try:
        conn.execute(sql.SQL("ALTER TABLE {} {}").format(qualified(table), sql.SQL(change)))
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported) as error:
        raise TargetMismatchError(
            f"The table {table} cannot be changed as load.schemaEvolution asks for",
            found=" ".join(str(error).split()),
            expected=f"ALTER TABLE … {change}: by a role that owns the table, with nothing that depends on the column",
            cure="Let the owner make the change, or set load.schemaEvolution to strict",
        ) from error
