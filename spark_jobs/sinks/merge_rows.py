"""The statements that find the rows which a merge refuses. Driver side.

The rows that the target's keys will probably refuse are asked for first. Of an append that is done in the staging table
itself, and only they are put into an order and tried by themselves; of an upsert only each key's winner counts, so all
winners are put into an order before.
"""

from __future__ import annotations

from psycopg import sql

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.by_rows import RowsText
from spark_jobs.sinks.merge_sql import SEQUENCE, MergeRule, MergeSql
from spark_jobs.sinks.origins import ORIGIN_TYPES
from spark_jobs.sinks.sift_text import VARIABLES, Numbered, sift_text
from spark_jobs.sinks.sifting import SiftText
from spark_jobs.sinks.target import Target

_ORDERED = "etl_ordered"
_ORDINAL = "_ordinal"
_AT_ONCE = 1000


def rows_text(made: MergeSql, target: Target, rule: MergeRule, conn: Connection, latest: str, table: str) -> RowsText:
    """Return the statements.

    :param latest: the subquery of the rows that are to be written. :param table: the staging table, quoted.
    """
    span = f"{_ORDERED} WHERE {_ORDINAL} BETWEEN {{first}} AND {{last}} ORDER BY {_ORDINAL}"
    data = ", ".join([made.columns, *made.marker])
    # A text that is cast only later is not compared as such, and of rows with the same key one is not written.
    asks_staged = target.direct and not rule.keys
    # Names are rendered by psycopg.sql, or constants.
    return RowsText(
        aside=made.doubts(table, SEQUENCE) if asks_staged else (),
        rest=made.write(f"(SELECT * FROM {latest} WHERE {SEQUENCE} > 0) AS rest") if asks_staged else "",  # noqa: S608
        order_aside=_ordered(made, f"(SELECT * FROM {latest} WHERE {SEQUENCE} < 0) AS aside"),  # noqa: S608
        order=_ordered(made, latest),
        doubts=() if asks_staged else made.doubts(_ORDERED, _ORDINAL),
        count=f"SELECT count(*), count(*) FILTER (WHERE {_ORDINAL} < 0) FROM {_ORDERED}",  # noqa: S608
        part=made.braced(made.write("\0")).replace("\0", f"(SELECT * FROM {span}) AS latest"),  # noqa: S608
        answers=rule.delete_marker is not None,
        doubted=f"SELECT {_ORDINAL} FROM {_ORDERED} WHERE {_ORDINAL} < {{after}} ORDER BY 1 DESC LIMIT {_AT_ONCE}",  # noqa: S608
        # Not as jsonb: a column of type json may hold what that refuses, and the row is to be kept whatever it holds.
        row=f"SELECT abs(o.{_ORDINAL}), row_to_json(d)::text, {', '.join(f'o.{name}' for name in ORIGIN_TYPES)} "  # noqa: S608
        f"FROM {_ORDERED} o, LATERAL (SELECT {made.braced(data)}) AS d WHERE o.{_ORDINAL} IN ({{ordinals}})",
        sift=_sift(made, target, rule, conn),
    )


def _ordered(made: MergeSql, source: str) -> tuple[str, ...]:
    data = ", ".join([made.columns, *made.marker, *ORIGIN_TYPES])
    number = f"row_number() OVER (ORDER BY {made.keys or f'abs({SEQUENCE})'}) * sign({SEQUENCE})::bigint"
    return (
        f"CREATE TEMP TABLE {_ORDERED} ON COMMIT DROP AS SELECT {data}, {number} AS {_ORDINAL} FROM {source}",  # noqa: S608
        f"CREATE INDEX ON {_ORDERED} ({_ORDINAL})",
        # Else the server might sort the rest of the rows for each that it refuses.
        f"ANALYZE {_ORDERED} ({_ORDINAL})",
    )


def _sift(made: MergeSql, target: Target, rule: MergeRule, conn: Connection) -> SiftText | None:
    if rule.delete_marker or any(column.name in VARIABLES for column in target.columns):
        return None
    place = sql.Identifier("pg_temp", "etl_merge_place")
    rows = Numbered(
        sql.Identifier("pg_temp", _ORDERED),
        sql.Identifier(_ORDINAL),
        sql.Identifier("pg_temp", "etl_merge_sift"),
        place,
    )
    insert = made.write(f"(SELECT * {rows.span(conn).as_string(conn)}) AS latest")
    text = sift_text(conn, rows, sql.SQL(insert))
    sequence = place.as_string(conn)
    return SiftText(
        create=(f"CREATE TEMP SEQUENCE {sequence}", *text.create),
        sift=text.sift,
        drop=(*text.drop, f"DROP SEQUENCE {sequence}"),
    )
