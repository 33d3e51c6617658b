"""The target table: made from the query's schema when asked for, else checked column by column before data moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from psycopg import sql
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructType

from spark_jobs.contracts.config import TableName
from spark_jobs.contracts.errors import TargetMismatchError
from spark_jobs.sinks.references import Demands, demands
from spark_jobs.sinks.table_columns import Connection, TargetColumn, qualified, table_columns
from spark_jobs.sinks.table_state import table_state
from spark_jobs.sinks.target_checks import problems
from spark_jobs.sinks.types import column_type, to_sent, travels_as_text
from spark_jobs.sinks.unaltered import TableState


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK constraint of the target, and the columns that it is about."""

    name: str
    definition: str
    columns: tuple[str, ...]

    @property
    def condition(self) -> str:
        """What must not be false."""
        return self.definition.removeprefix("CHECK ").removesuffix(" NO INHERIT")


@dataclass(frozen=True, slots=True)
class Target:
    """The target table as it was found (or made) at the start of the run.

    :param columns: the columns that the query fills, in the query's order.
    :param state: what each transaction that writes to it compares.
    :param has_insert_triggers: whether a trigger may change or suppress a row before it is inserted.
    :param has_suppressing_triggers: the same, before it is inserted, updated or deleted.
    :param spares_equal_rows: whether PostgreSQL's own trigger leaves out updates that change nothing.
    :param has_rules: whether an INSERT may do something else there than COPY. :param demands: of its keys.
    """

    table: TableName
    columns: tuple[TargetColumn, ...]
    state: TableState
    has_insert_triggers: bool
    has_suppressing_triggers: bool
    spares_equal_rows: bool
    checks: tuple[Check, ...] = ()
    has_rules: bool = False
    demands: Demands = field(default_factory=Demands)

    def identifier(self) -> sql.Identifier:
        """Return the quoted, qualified name."""
        return qualified(self.table)

    @property
    def direct(self) -> bool:
        """Whether COPY can send every column straight into the target."""
        return all(column.direct for column in self.columns)

    def sent(self, types: Mapping[str, DataType]) -> list[Column]:
        """Return each data column cast to what COPY sends for the target's column, or its staging's.

        :param types: of the query's columns.
        """
        return [
            to_sent(column_of(column.name), types[column.name], column.type).alias(column.name)
            for column in self.columns
        ]


def column_of(name: str) -> Column:
    """Return the column of that name, whatever characters it has."""
    return F.col("`" + name.replace("`", "``") + "`")


def resolved(conn: Connection, table: TableName) -> TableName:
    """Give a table without a schema the one that the connection's search path says: where it is, or would be made."""
    if table.schema:
        return table
    row = conn.execute(
        "SELECT coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = to_regclass(%s)), current_schema())",
        [sql.Identifier(table.table).as_string(conn)],
    ).fetchone()
    if row is None or row[0] is None:
        raise TargetMismatchError(
            f"The table {table} has no schema", found="a search_path without any existing schema",
            cure="Write load.table as schema.table",
        )  # fmt: skip
    return TableName(str(row[0]), table.table)


def create_if_missing(conn: Connection, table: TableName, schema: StructType, keys: Sequence[str]) -> bool:
    """Create the table from the query's schema; return whether it was missing. Safe when two start at once.

    :param keys: columns of the unique key that an upsert needs. NULL counts as a value there (PostgreSQL 15), as it
        does for Spark's groups.
    """
    unplaced = [
        f"{field.name} {field.dataType.simpleString()}" for field in schema.fields if not column_type(field.dataType)
    ]
    if unplaced:
        raise TargetMismatchError(
            f"The table {table} cannot be created", found=f"columns without a PostgreSQL type: {', '.join(unplaced)}",
            cure="Cast them in a select",
        )  # fmt: skip
    with conn.transaction():
        _one_at_a_time(conn, f"etl create {table.schema}.{table.table}")
        if _exists(conn, table):
            return False
        _create_schema_if_missing(conn, str(table.schema))
        definitions = [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(column_type(field.dataType)))
            for field in schema.fields
        ]
        if keys:
            definitions.append(_unique(conn, keys))
        conn.execute(sql.SQL("CREATE TABLE {} ({})").format(qualified(table), sql.SQL(", ").join(definitions)))
        return True


def _create_schema_if_missing(conn: Connection, schema: str) -> None:
    # IF NOT EXISTS does not see a schema that another transaction is creating (it fails on pg_namespace's unique
    # index), and needs a privilege on the database even where the schema exists.
    _one_at_a_time(conn, f"etl create schema {schema}")
    name = sql.Identifier(schema)
    if conn.execute("SELECT to_regnamespace(%s) IS NULL", [name.as_string(conn)]).fetchone() == (True,):
        conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))


def _one_at_a_time(conn: Connection, what: str) -> None:
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [what])


def _unique(conn: Connection, keys: Sequence[str]) -> sql.Composed:
    columns = sql.SQL(", ").join(map(sql.Identifier, keys))
    form = "UNIQUE NULLS NOT DISTINCT ({})" if conn.info.server_version >= 150000 else "PRIMARY KEY ({})"
    return sql.SQL(form).format(columns)


def _exists(conn: Connection, table: TableName) -> bool:
    found = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [qualified(table).as_string(conn)]).fetchone()
    return bool(found and found[0])


def inspect(
    conn: Connection, table: TableName, schema: StructType, keys: Sequence[str], *, deletes: bool = False
) -> Target:
    """Compare the table with the query's schema.

    :param deletes: whether a batch may delete rows: by replacing all, or by a deletion marker.

    :raises TargetMismatchError: naming every difference at once.
    """
    if not _exists(conn, table):
        raise TargetMismatchError(
            f"The table {table} does not exist",
            expected="a table with the columns "
            + ", ".join(f"{f.name} {column_type(f.dataType)}" for f in schema.fields),
            cure="Create it, or set load.autoCreateTable to true",
        )
    have = {column.name: column for column in table_columns(conn, table)}
    found = problems(conn, table, schema, have, keys, deletes=deletes)
    if found:
        raise TargetMismatchError(
            f"The table {table} does not fit the pipeline",
            found="; ".join(found),
            cure="Change the table, or the select before the load",
        )
    columns = tuple(
        replace(have[field.name], direct=not travels_as_text(field.dataType, have[field.name].type))
        for field in schema.fields
    )
    return Target(
        table,
        columns,
        table_state(conn, qualified(table), [column.name for column in columns], merges=bool(keys)),
        has_insert_triggers=_has_triggers(conn, table, _INSERT),
        has_suppressing_triggers=_has_triggers(conn, table, _INSERT | _UPDATE | _DELETE),
        spares_equal_rows=_has_triggers(conn, table, _UPDATE, "suppress_redundant_updates_trigger"),
        checks=_checks(conn, table),
        has_rules=_has_rules(conn, table),
        demands=demands(conn, table),
    )


_CHECKS = """
SELECT c.conname, pg_get_constraintdef(c.oid), array_agg(a.attname::text)
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
WHERE c.conrelid = to_regclass(%s) AND c.contype = 'c' AND c.convalidated
GROUP BY c.oid, c.conname ORDER BY c.conname
"""


def _checks(conn: Connection, table: TableName) -> tuple[Check, ...]:
    rows = conn.execute(_CHECKS, [qualified(table).as_string(conn)]).fetchall()
    return tuple(Check(name, definition, tuple(columns)) for name, definition, columns in rows)


def _has_rules(conn: Connection, table: TableName) -> bool:
    name = qualified(table).as_string(conn)
    row = conn.execute("SELECT relhasrules FROM pg_class WHERE oid = to_regclass(%s)", [name]).fetchone()
    return bool(row and row[0])


# Bits of tgtype: 1 for each row, 2 before, 64 instead of. A partition has triggers of its own.
_INSERT, _DELETE, _UPDATE = 4, 8, 16
_TRIGGERS = """
SELECT EXISTS (
    SELECT FROM pg_trigger t
    WHERE NOT t.tgisinternal AND (%(function)s = '' OR t.tgfoid = to_regproc(%(function)s))
    AND t.tgtype & 1 = 1 AND t.tgtype & %(events)s > 0 AND t.tgtype & 66 > 0 AND t.tgrelid IN (
        SELECT to_regclass(%(table)s) UNION ALL SELECT relid FROM pg_partition_tree(to_regclass(%(table)s))))
"""


def _has_triggers(conn: Connection, table: TableName, events: int, function: str = "") -> bool:
    asked = {"table": qualified(table).as_string(conn), "events": events, "function": function}
    row = conn.execute(_TRIGGERS, asked).fetchone()
    return bool(row and row[0])
