"""The DDL of a staging table: the target's columns, what the target demands of them, and where each row came from."""

from __future__ import annotations

from psycopg import sql

from spark_jobs.sinks.merge_sql import SEQUENCE, MergeRule
from spark_jobs.sinks.merging import ATTEMPT
from spark_jobs.sinks.origins import ORIGIN_TYPES
from spark_jobs.sinks.table_columns import TargetColumn
from spark_jobs.sinks.target import Target

_ONE_ATTEMPT = ((SEQUENCE, "bigint"), *ORIGIN_TYPES.items())
_MARKS = ((ATTEMPT, "bigint"), *_ONE_ATTEMPT)


def create_staging(name: sql.Composable, target: Target, *, kind: str, rule: MergeRule) -> sql.Composed:
    """Return the statement.

    The table has the target's NOT NULLs and checks, as far as they are about columns that are there: so a refused row
    is found by COPY, which names its line, instead of by the merge. A column that is staged as text is checked to be
    a value of the target's type.

    :param kind: ``TEMP`` (dropped at the end of the transaction) or ``UNLOGGED``.
    """
    # A trigger may complete a row before it is inserted, and a row that is only a key and a deletion marker is no row.
    demanding = not target.has_insert_triggers and rule.delete_marker is None
    items: list[sql.Composable] = [_column(column, demanding=demanding) for column in target.columns]
    items += [sql.SQL("{} {}").format(sql.Identifier(mark), sql.SQL(kind_of)) for mark, kind_of in marks(kind, rule)]
    items += [_valid(column) for column in target.columns if not column.direct]
    if demanding:
        typed = {column.name for column in target.columns if column.direct}
        items += [
            sql.SQL("CONSTRAINT {} {}").format(sql.Identifier(check.name), sql.SQL(check.definition))
            for check in target.checks
            if typed.issuperset(check.columns)
        ]
    ending = " ON COMMIT DROP" if kind == "TEMP" else ""
    return sql.SQL("CREATE {} TABLE {} ({}){}").format(sql.SQL(kind), name, sql.SQL(", ").join(items), sql.SQL(ending))


def marks(kind: str, rule: MergeRule) -> list[tuple[str, str]]:
    """Return the columns of a staging table of this kind beside the target's, and their types."""
    # A temporary one is a single attempt's, which then need not be sent with each row.
    marker = [(rule.delete_marker, "boolean")] if rule.delete_marker else []
    return [*marker, *(_ONE_ATTEMPT if kind == "TEMP" else _MARKS)]


def _column(column: TargetColumn, *, demanding: bool) -> sql.Composed:
    # A domain's and a type's own rules come with the type.
    not_null = sql.SQL(" NOT NULL" if demanding and column.not_null else "")
    # Which of two values is the same, or the later one, must not depend on where they are compared.
    collation = sql.SQL(f" COLLATE {column.collation}" if column.collation else "")
    return sql.SQL("{} {}{}{}").format(sql.Identifier(column.name), sql.SQL(column.staged_type), collation, not_null)


def _valid(column: TargetColumn) -> sql.Composed:
    name = sql.Identifier(column.name)
    # The cast fails by itself, with the type's own error, in the COPY that names the line.
    cast = sql.SQL(column.from_staged.replace("{}", "{0}")).format(name)
    return sql.SQL("CHECK ({} IS NULL OR ({}) IS NOT NULL)").format(name, cast)
