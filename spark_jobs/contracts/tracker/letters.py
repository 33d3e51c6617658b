"""Questions about dead letters, and giving them up. The statements here take no lock that a micro-batch waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args
from uuid import UUID

from psycopg import sql
from psycopg.rows import dict_row

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import Letter, LetterCount, LetterFilter, LetterStatus, WholeLetter
from spark_jobs.contracts.tracker.bundles import of_bundles, single_out
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction
from spark_jobs.contracts.tracker.letter_filters import conditions
from spark_jobs.contracts.tracker.moving import among_moving_letters

_LISTED: Final = (
    "dead_letter_id, pipeline_id, query_id, batch_id, status, stage, error_class, sqlstate, message, column_name, "
    "constraint_name, source, event_time, attempt, first_failed_at, last_failed_at, replay_id, home_query_id, "
    "home_batch_id, closed_at, closed_by, reason"
)
_LIST = f"SELECT {_LISTED} FROM TABLES WHERE "  # noqa: S608
# Each by itself: every index that is in the order of time is one's own.
_TABLES: Final = (
    "{schema}.dead_letter_single",
    "{schema}.dead_letter_bundle JOIN {schema}.dead_letter_bundled USING (bundle_id)",
)
_SHOW = f"SELECT {_LISTED}, raw_key, raw_value, raw_headers, parsed_row FROM {{schema}}.dead_letter "  # noqa: S608
# By the differences that the table's triggers keep: counting the letters themselves takes seconds where there are many.
_COUNT: Final = """
SELECT pipeline_id, status, stage, error_class, sum(letters)::bigint AS letters FROM {schema}.dead_letter_tally
WHERE (%(pipeline_id)s::text IS NULL OR pipeline_id = %(pipeline_id)s)
  AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
  AND (%(stages)s::text[] IS NULL OR stage = ANY (%(stages)s))
  AND (%(classes)s::text[] IS NULL OR error_class = ANY (%(classes)s))
GROUP BY 1, 2, 3, 4 HAVING sum(letters) <> 0 ORDER BY 1, 2, letters DESC, 3, 4"""
_TALLY_SIZE: Final = """
SELECT count(*) > %(most)s FROM (
    SELECT FROM {schema}.dead_letter_tally WHERE pipeline_id = %(pipeline_id)s LIMIT %(most)s + 1
) AS differences"""
_COMPACT: Final = """
WITH gone AS (
    DELETE FROM {schema}.dead_letter_tally WHERE pipeline_id = %(pipeline_id)s
    RETURNING pipeline_id, status, stage, error_class, letters
)
INSERT INTO {schema}.dead_letter_tally (pipeline_id, status, stage, error_class, letters)
SELECT pipeline_id, status, stage, error_class, sum(letters) FROM gone GROUP BY 1, 2, 3, 4 HAVING sum(letters) <> 0"""
_DISCARD: Final = """
WITH whole AS (
    UPDATE {schema}.dead_letter_bundle SET status = 'discarded', closed_at = clock_timestamp(), closed_by = %(by)s,
        reason = %(reason)s
    WHERE status IN ('pending', 'parked') AND %(whole)s AND BUNDLES RETURNING letters
), single AS (
    UPDATE {schema}.dead_letter_single SET status = 'discarded', closed_at = clock_timestamp(), closed_by = %(by)s,
        reason = %(reason)s
    WHERE status IN ('pending', 'parked') AND SINGLES RETURNING 1
)
SELECT (SELECT count(*) FROM single) + (SELECT coalesce(sum(letters), 0) FROM whole)"""


def list_letters(
    conn: Connection, schema: str, wanted: LetterFilter, *, limit: int = 50, everywhere: bool = False
) -> list[Letter]:
    """Return letters without their payload, the newest first.

    :param everywhere: of all pipelines, whatever the filter's pipeline.
    """
    order = "ORDER BY first_failed_at DESC, dead_letter_id LIMIT %(limit)s"
    where, values = conditions(wanted.model_copy(update={"statuses": ()}), everywhere=everywhere)
    parts: list[str] = []
    # One look for each status: every index that is in the order of time is one status's.
    for status in wanted.statuses or get_args(LetterStatus):
        for tables in _TABLES:
            listed = _LIST.replace("TABLES", tables)
            parts.append(f"({listed}{where} AND status = %(status_{status})s {order})")
        values[f"status_{status}"] = status
    with classified("Listing dead letters"):
        rows = query(
            conn,
            schema,
            f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS letter {order}",  # noqa: S608 - constants and placeholders
            {**values, "limit": limit},
            row_factory=dict_row,
        ).fetchall()
    return [Letter.model_validate(row) for row in rows]


def compact_tally(conn: Connection, schema: str, pipeline_id: str, *, most: int = 200) -> bool:
    """Add up the tally's differences of one pipeline once they are more than ``most``; return whether it was done.

    Differences that others write meanwhile stay beside the sums: nobody waits, and the numbers are right throughout.
    """
    values = {"pipeline_id": pipeline_id, "most": most}
    with classified("Looking at the tally of dead letters"):
        row = query(conn, schema, _TALLY_SIZE, values).fetchone()
    if row is None or not row[0]:
        return False
    with short_transaction(conn, "Adding up the tally of dead letters"):
        query(conn, schema, _COMPACT, values)
    return True


def show_letter(conn: Connection, schema: str, dead_letter_id: UUID) -> WholeLetter:
    """Return one letter with its payload.

    :raises ConfigError: there is no such letter.
    """
    with classified("Reading a dead letter"):
        row = query(
            conn, schema, f"{_SHOW}WHERE dead_letter_id = %s", (dead_letter_id,), row_factory=dict_row
        ).fetchone()
    if row is None:
        raise ConfigError(
            f"There is no dead letter {dead_letter_id}",
            expected="an id that `etl-pipeline dead-letters list` shows",
            cure="check the connection and the tracker's schema",
        )
    return WholeLetter.model_validate(row)


def count_letters(
    conn: Connection,
    schema: str,
    pipeline_id: str | None = None,
    *,
    statuses: Sequence[str] = (),
    stages: Sequence[str] = (),
    error_classes: Sequence[str] = (),
) -> list[LetterCount]:
    """Return how many letters there are of each kind; exact, and cheap however many there are."""
    values = {
        "pipeline_id": pipeline_id,
        "statuses": list(statuses) or None,
        "stages": list(stages) or None,
        "classes": list(error_classes) or None,
    }
    with classified("Counting dead letters"):
        rows = query(conn, schema, _COUNT, values, row_factory=dict_row).fetchall()
    return [LetterCount.model_validate(row) for row in rows]


def discard_letters(conn: Connection, schema: str, wanted: LetterFilter, *, by: str, reason: str) -> int:
    """Give letters up, for good and by name; return how many. Only those that are pending or parked.

    :raises ConfigError: nobody is named, or no reason is given.
    """
    if not by.strip() or not reason.strip():
        raise ConfigError(
            "Dead letters are given up by somebody, for a reason",
            found=f"by {by!r}, reason {reason!r}",
            expected="a name and a reason, which stay with the letters",
        )
    where, values = conditions(wanted)
    statement = _DISCARD.replace("SINGLES", where).replace("BUNDLES", of_bundles(wanted)[0])
    values |= {"by": by, "reason": reason, "whole": not wanted.ids}

    def discard() -> int:
        single_out(conn, schema, wanted)
        row = query(conn, schema, statement, values).fetchone()
        return int(row[0]) if row else 0

    return among_moving_letters(conn, "Discarding dead letters", discard)


def known_pipelines(conn: Connection, schema: str) -> list[str]:
    """Return the pipelines that have dead letters."""
    found = sql.SQL("SELECT DISTINCT pipeline_id FROM {}.dead_letter_tally ORDER BY 1").format(sql.Identifier(schema))
    with classified("Looking up the pipelines that have dead letters"):
        return [str(row[0]) for row in conn.execute(found).fetchall()]
