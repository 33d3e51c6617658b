"""What a target's foreign and unique keys demand, as far as it can be asked of many rows at once. Driver side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from psycopg import sql

from spark_jobs.contracts.config import TableName
from spark_jobs.sinks.table_columns import Connection, qualified


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key: ``columns`` of the target, and in their order ``keys`` of ``table``, which is quoted."""

    columns: tuple[str, ...]
    table: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Demands:
    """Of the target's keys.

    :param references: foreign keys. :param uniques: columns of unique indexes over plain columns and all rows.
    """

    references: tuple[Reference, ...] = ()
    uniques: tuple[tuple[str, ...], ...] = ()

    @property
    def columns(self) -> frozenset[str]:
        """Return the target's columns that they are about."""
        return frozenset().union(*(one.columns for one in self.references), *self.uniques)

    def of(self, names: Collection[str]) -> Demands:
        """Return those that are about these columns alone."""
        known = frozenset(names)
        return Demands(
            tuple(one for one in self.references if known.issuperset(one.columns)),
            tuple(columns for columns in self.uniques if known.issuperset(columns)),
        )


# A key of which some columns are NULL refers to nothing (MATCH SIMPLE). Rows that refer to rows of the same table may
# find them in the same micro-batch: by themselves they would be refused.
_REFERENCES = """
SELECT array_agg(a.attname::text ORDER BY k.place), format('%%I.%%I', n.nspname, t.relname),
    array_agg(f.attname::text ORDER BY k.place)
FROM pg_constraint c
CROSS JOIN LATERAL unnest(c.conkey, c.confkey) WITH ORDINALITY AS k(own, other, place)
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.own
JOIN pg_attribute f ON f.attrelid = c.confrelid AND f.attnum = k.other
JOIN pg_class t ON t.oid = c.confrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE c.conrelid = to_regclass(%s) AND c.contype = 'f' AND c.confmatchtype = 's' AND c.confrelid <> c.conrelid
GROUP BY c.oid, n.nspname, t.relname ORDER BY c.oid
"""
_UNIQUES = """
SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i
CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid ORDER BY i.indexrelid
"""


def demands(conn: Connection, table: TableName) -> Demands:
    """Return what the table's keys demand now."""
    name = qualified(table).as_string(conn)
    references = conn.execute(_REFERENCES, [name]).fetchall()
    uniques = conn.execute(_UNIQUES, [name]).fetchall()
    return Demands(
        tuple(Reference(tuple(own), there, tuple(keys)) for own, there, keys in references),
        tuple(tuple(columns) for (columns,) in uniques),
    )


def doubts(
    demanded: Demands, conn: Connection, rows: str, ordinal: str, target: sql.Composable, keys: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return statements that turn the sign of the ordinals of rows that the server will probably refuse.

    Each is a question about all rows at once, in place of a try for each; only what the server says counts. They have
    their row as ``o``.

    :param rows: the table with the rows, and an ordinal above 0 for each. :param target: where they go.
    :param keys: of an upsert: a row of the target with the same ones is replaced.
    """
    here = target.as_string(conn)
    aside = f"UPDATE {rows} AS o SET {ordinal} = -o.{ordinal}"  # noqa: S608 - constants
    found = [f"{aside} WHERE o.{ordinal} > 0 AND {_missing(one, conn)}" for one in demanded.references]
    for columns in demanded.uniques:
        if set(columns) == set(keys):
            continue
        same, whole = _same(columns, columns, conn, "t"), _whole(columns, conn)
        replaced = f" AND NOT ({_same(keys, keys, conn, 't')})" if keys else ""
        names = ", ".join(f"o.{_name(column, conn)}" for column in columns)
        numbered = f"SELECT o.{ordinal}, row_number() OVER (PARTITION BY {names} ORDER BY abs(o.{ordinal})) AS nth"
        found += [
            f"{aside} WHERE o.{ordinal} > 0 AND {whole} AND EXISTS (SELECT FROM {here} t WHERE {same}{replaced})",
            f"{aside} FROM ({numbered} FROM {rows} o WHERE {whole}) AS again "
            f"WHERE again.nth > 1 AND o.{ordinal} > 0 AND o.{ordinal} = again.{ordinal}",
        ]
    return tuple(found)


def _missing(reference: Reference, conn: Connection) -> str:
    whole = _whole(reference.columns, conn)
    same = _same(reference.columns, reference.keys, conn, "r")
    return f"{whole} AND NOT EXISTS (SELECT FROM {reference.table} r WHERE {same})"


def _whole(columns: Sequence[str], conn: Connection) -> str:
    return " AND ".join(f"o.{_name(column, conn)} IS NOT NULL" for column in columns)


def _same(columns: Sequence[str], keys: Sequence[str], conn: Connection, alias: str) -> str:
    return " AND ".join(
        f"{alias}.{_name(key, conn)} = o.{_name(column, conn)}" for column, key in zip(columns, keys, strict=True)
    )


def _name(name: str, conn: Connection) -> str:
    return sql.Identifier(name).as_string(conn)
