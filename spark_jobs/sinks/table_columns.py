"""A table's columns as the server's catalogue has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from spark_jobs.contracts.config import TableName
from spark_jobs.sinks.types import PostgresType

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of the target table.

    :param declared: the type as the table has it; :param type: without a domain's or an enumeration's name.
    :param collation: quoted, where it is not the type's own.
    :param direct: whether COPY sends the query's column in binary form; else it is staged as text, and cast.
    """

    name: str
    type: PostgresType
    declared: str
    not_null: bool
    has_default: bool
    generated: bool
    direct: bool = True
    collation: str = ""

    @property
    def staged_type(self) -> str:
        """The column's type in a staging table."""
        return self.declared if self.direct else "text"

    @property
    def plain_type(self) -> str:
        """The staged type without what a domain or a modifier demands; the same bytes stand for its values."""
        if not self.direct or self.type.base == "enum":
            return self.staged_type
        # Without a modifier "character" is one character.
        return "bpchar" if self.type.base == "character" else self.type.base

    @property
    def from_staged(self) -> str:
        """SQL that turns the staged column, put in for ``{}``, into the target's."""
        return "{}" if self.direct else "{}::" + self.declared


def qualified(table: TableName) -> sql.Identifier:
    """Return ``schema.table`` quoted."""
    return sql.Identifier(str(table.schema), table.table)


def table_columns(conn: Connection, table: TableName) -> list[TargetColumn]:
    """Return the table's columns, in its order. A domain counts as what it is made of."""
    rows = conn.cursor(row_factory=dict_row).execute(_COLUMNS, [qualified(table).as_string(conn)]).fetchall()
    return [
        TargetColumn(
            r["name"],
            PostgresType("enum") if r["is_enum"] else PostgresType.parse(r["type"]),
            r["declared"],
            r["not_null"],
            r["has_default"],
            r["generated"],
            collation=r["collation"],
        )
        for r in rows
    ]


_COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS declared, b.typtype = 'e' AS is_enum,
    CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE format_type(a.atttypid, a.atttypmod)
    END AS type,
    a.attnotnull OR t.typnotnull AS not_null, a.atthasdef OR a.attidentity <> '' AS has_default,
    a.attgenerated <> '' OR a.attidentity = 'a' AS generated,
    CASE WHEN a.attcollation NOT IN (0, t.typcollation) THEN a.attcollation::regcollation::text ELSE '' END AS collation
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
