"""The statements that bring staged rows into the target. Rendered on the driver, without parameters.

Keys are taken in order, so that pipelines that upsert the same table do not deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from spark_jobs.contracts.config import WriteMode
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.target import Target

PART = "_part"
ATTEMPT = "_attempt"
SEQUENCE = "_seq"
SOURCE = "_source"
ORDERED = "etl_ordered"
_MARKS = ((PART, "integer"), (ATTEMPT, "bigint"), (SEQUENCE, "bigint"), (SOURCE, "text"))


@dataclass(frozen=True, slots=True)
class MergeRule:
    """How rows come into the target."""

    mode: WriteMode
    keys: tuple[str, ...] = ()
    order_column: str | None = None
    update_columns: tuple[str, ...] = ()
    on_conflict: str = "update"
    delete_marker: str | None = None


def merge_rule(load: Load) -> MergeRule:
    """Return the rule that the configuration asks for."""
    return MergeRule(load.write_mode, load.keys if load.write_mode is WriteMode.UPSERT else ())


@dataclass(frozen=True, slots=True)
class Merge:
    """The statements of one merge; see :class:`spark_jobs.sinks.applying.Merger`."""

    whole: str
    order: tuple[str, ...]
    count: str
    part: str
    row: str


def create_staging(name: sql.Composable, target: Target, *, kind: str, rule: MergeRule) -> sql.Composed:
    """Return the DDL of a staging table: the target's columns by type, and each row's part, attempt and number.

    :param kind: ``TEMP`` (dropped at the end of the transaction) or ``UNLOGGED``.
    """
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.staged_type)) for column in target.columns
    ]
    marks = [sql.SQL("{} {}").format(sql.Identifier(mark), sql.SQL(kind_)) for mark, kind_ in _MARKS]
    ending = " ON COMMIT DROP" if kind == "TEMP" else ""
    return sql.SQL("CREATE {} TABLE {} ({}){}").format(
        sql.SQL(kind), name, sql.SQL(", ").join([*columns, *marks]), sql.SQL(ending)
    )


def merge(target: Target, source: str, rule: MergeRule, conn: Connection) -> Merge:
    """Return the statements for the rows of ``source``: the rendered SQL of a table, or of a subquery with an alias."""
    text = {
        "target": target.identifier().as_string(conn),
        "columns": _names(target).as_string(conn),
        "keys": sql.SQL(", ").join(map(sql.Identifier, rule.keys)).as_string(conn),
    }
    latest = source
    if rule.keys:
        latest = (
            f"(SELECT DISTINCT ON ({text['keys']}) * FROM {source} "
            f"ORDER BY {text['keys']}, {PART} DESC, {SEQUENCE} DESC) AS latest"
        )
    conflict = _conflict(target, rule).as_string(conn) if rule.keys else ""
    insert = f"INSERT INTO {text['target']} ({text['columns']}) SELECT {text['columns']} FROM"
    order = f" ORDER BY {text['keys']}" if rule.keys else ""
    numbering = text["keys"] or f"{PART}, {SEQUENCE}"
    return Merge(
        whole=_counted(f"{insert} {latest}{conflict}"),
        order=(
            f"CREATE TEMP TABLE {ORDERED} ON COMMIT DROP AS SELECT {text['columns']}, {SOURCE}, "
            f"row_number() OVER (ORDER BY {numbering}) AS _ordinal FROM {latest}",
            f"CREATE INDEX ON {ORDERED} (_ordinal)",
        ),
        count=f"SELECT count(*) FROM {ORDERED}",
        part=_counted(f"{insert} {ORDERED} WHERE _ordinal BETWEEN {{first}} AND {{last}}{order}{conflict}"),
        row=f"SELECT (to_jsonb(o) - '_ordinal' - '{SOURCE}')::text, {SOURCE} FROM {ORDERED} o WHERE _ordinal = {{first}}",
    )


def _conflict(target: Target, rule: MergeRule) -> sql.Composed:
    values = [column.name for column in target.columns if column.name not in rule.keys] or list(rule.keys[:1])
    updates = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in values)
    keys = sql.SQL(", ").join(map(sql.Identifier, rule.keys))
    return sql.SQL(" ON CONFLICT ({}) DO UPDATE SET {}").format(keys, updates)


def empty(target: Target) -> sql.Composed:
    """Return the statement that removes every row; readers keep seeing the old rows until the commit."""
    # TRUNCATE would be quicker, but it blocks readers and shows older snapshots an empty table.
    return sql.SQL("DELETE FROM {}").format(target.identifier())


def _counted(statement: str) -> str:
    return f"WITH written AS ({statement} RETURNING 1) SELECT count(*) FROM written"


def winners_text(staging: str, attempts: Sequence[tuple[int, int]]) -> str:
    """Return the subquery of the rows of the winning attempts, given as (part, attempt)."""
    values = ", ".join(f"({int(part)}, {int(attempt)})" for part, attempt in attempts)
    return (
        f"(SELECT s.* FROM {staging} s JOIN (VALUES {values}) AS w(part, attempt) "
        f"ON s.{PART} = w.part AND s.{ATTEMPT} = w.attempt) AS staged"
    )


def _names(target: Target) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in target.columns)
