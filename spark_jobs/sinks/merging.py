"""The statements that bring staged rows into the target. Rendered on the driver, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from spark_jobs.contracts.config import WriteMode
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.applying import MergeText
from spark_jobs.sinks.early_look import EarlyLook
from spark_jobs.sinks.merge_audit import audit, present
from spark_jobs.sinks.merge_rows import rows_text
from spark_jobs.sinks.merge_sql import SEQUENCE, MergeRule, MergeSql
from spark_jobs.sinks.target import Target

ATTEMPT = "_attempt"


def merge(target: Target, table: str, rule: MergeRule, conn: Connection, *, winners: str = "true") -> MergeText:
    """Return the statements for rows of a staging table.

    :param table: quoted, as statements name it. :param winners: the condition for the rows that count.
    """
    made = MergeSql(target, rule, conn)
    staged = f"(SELECT * FROM {table} WHERE {winners}) AS staged"  # noqa: S608 - rendered by psycopg.sql, or constants
    typed = made.typed(staged)
    latest = made.latest(typed) if rule.keys else typed
    audited = made.audit(latest) if rule.keys else None
    nothing_suppressed = "" if rule.keys else None
    return MergeText(
        whole=made.write(latest),
        answers=rule.delete_marker is not None,
        rows=rows_text(made, target, rule, conn, latest, table),
        audit=audit(audited) if audited else nothing_suppressed,
        present=present(audited).format() if audited else "",
        lock=made.lock() if rule.keys else "",
    )


def early_look(target: Target, table: str, rule: MergeRule, conn: Connection) -> EarlyLook | None:
    """Return the look at rows of a staging table before the others are staged; None where it could say what is not so.

    :param table: quoted, as statements name it.
    """
    # A trigger may complete a row; what an overwrite will have deleted is still there.
    if not target.direct or target.has_insert_triggers or rule.mode is not WriteMode.APPEND:
        return None
    made = MergeSql(target, rule, conn)
    aside = made.doubts(table, SEQUENCE)
    one = f"(SELECT * FROM {table} WHERE {SEQUENCE} < 0 ORDER BY {SEQUENCE} DESC LIMIT 1) AS one"  # noqa: S608
    return EarlyLook(aside, made.write(one)) if aside else None


def empty(target: Target, conn: Connection) -> tuple[str, str]:
    """Return the statement that removes every row, and the question whether one is left.

    Readers keep seeing the old rows until the commit.
    """
    # TRUNCATE would be quicker, but it blocks readers and shows older snapshots an empty table.
    delete, left = sql.SQL("DELETE FROM {}"), sql.SQL("SELECT EXISTS (SELECT FROM {})")
    return delete.format(target.identifier()).as_string(conn), left.format(target.identifier()).as_string(conn)


def of_attempts(attempts: Sequence[int]) -> str:
    """Return the condition that a staged row is of one of these attempts."""
    return f"{ATTEMPT} = ANY ('{{{', '.join(str(int(attempt)) for attempt in attempts)}}}'::bigint[])"
