"""The statements of a probe: a table of the columns that checks and keys are about, and the questions. Driver side."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psycopg import sql

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.probe import ProbeText
from spark_jobs.sinks.references import Demands, doubts
from spark_jobs.sinks.sieve_names import SieveNames
from spark_jobs.sinks.table_columns import TargetColumn
from spark_jobs.sinks.target import Check


def probe_text(
    conn: Connection,
    its: SieveNames,
    line: str,
    into: sql.Composable,
    filled: Sequence[TargetColumn],
    checks: Sequence[Check],
    demanded: Demands | None,
) -> ProbeText | None:
    """Return the statements; None where nothing can be asked.

    :param line: what the column of the lines is called. :param into: the table that the rows go to.
    :param filled: the target's columns. :param checks: the target's. :param demanded: by the target's keys, if the rows
        go to the target itself.
    """
    # A text that is cast only later is neither checked nor compared as such.
    typed = {column.name for column in filled if column.direct}
    checks = [check for check in checks if set(check.columns) <= typed]
    demands = demanded.of(typed) if demanded else Demands()
    names = {name for check in checks for name in check.columns} | demands.columns
    asked = [column for column in filled if column.name in names]
    table, lines = its.probe.as_string(conn), sql.Identifier(line).as_string(conn)
    questions = doubts(demands, conn, table, lines, into)
    if checks:
        questions = (_of_checks(its, line, checks).as_string(conn), *questions)
    if not questions:
        return None
    return ProbeText(
        schema=its.schema,
        table=its.name("probe"),
        line=line,
        columns=tuple(column.name for column in asked),
        create=_table(its, line, asked).as_string(conn),
        doubts=questions,
        doubted=f"SELECT -{lines} FROM {table} WHERE {lines} < 0 ORDER BY 1",  # noqa: S608 - rendered by psycopg.sql
        empty=f"TRUNCATE {table}",
    )


def _table(its: SieveNames, line: str, asked: Collection[TargetColumn]) -> sql.Composed:
    kind, ending = ("UNLOGGED", "") if its.mark else ("TEMP", " ON COMMIT DROP")
    columns = [sql.SQL("{} {}").format(sql.Identifier(one.name), sql.SQL(one.plain_type)) for one in asked]
    columns.append(sql.SQL("{} bigint").format(sql.Identifier(line)))
    return sql.SQL("CREATE {} TABLE {} ({}){}").format(
        sql.SQL(kind), its.probe, sql.SQL(", ").join(columns), sql.SQL(ending)
    )


def _of_checks(its: SieveNames, line: str, checks: Sequence[Check]) -> sql.Composed:
    fails = sql.SQL(" OR ").join(sql.SQL("({}) IS FALSE").format(sql.SQL(check.condition)) for check in checks)
    update = sql.SQL("UPDATE {} AS c SET {line} = -c.{line} WHERE {fails}")
    return update.format(its.probe, line=sql.Identifier(line), fails=fails)
