"""Bundles of dead letters: those that failed together in the same way share one row, and with it their status.

Whatever is done to all of them is one change of that row. As soon as one is treated unlike the others the bundle is
taken apart: its letters become rows of their own, and are none of a bundle's any more.
"""

from __future__ import annotations

from typing import Any, Final

from spark_jobs.contracts.replay import LetterFilter
from spark_jobs.contracts.tracker.connect import Connection, query
from spark_jobs.contracts.tracker.letter_filters import conditions

# The letters of a replay keep their places in it. CHOSEN is a condition over bundles.
TAKE_APART: Final = """
WITH gone AS (
    DELETE FROM {schema}.dead_letter_bundle WHERE CHOSEN RETURNING *
), letter AS (
    DELETE FROM {schema}.dead_letter_bundled WHERE bundle_id = ANY (ARRAY(SELECT bundle_id FROM gone)) RETURNING *
), held AS (
    DELETE FROM {schema}.dead_letter_replay_bundle r USING gone
    WHERE r.bundle_id = gone.bundle_id AND r.replay_id = gone.replay_id AND gone.status = 'replaying' RETURNING r.*
), item AS (
    INSERT INTO {schema}.dead_letter_replay_item (
        replay_id, position, dead_letter_id, stage, error_class, has_raw_value
    )
    SELECT h.replay_id, h.first_position + row_number() OVER (PARTITION BY h.bundle_id ORDER BY l.dead_letter_id),
        l.dead_letter_id, h.stage, h.error_class, h.has_raw_value
    FROM held h JOIN letter l USING (bundle_id)
)
INSERT INTO {schema}.dead_letter_single (
    dead_letter_id, pipeline_id, query_id, batch_id, stage, error_class, sqlstate, message, column_name,
    constraint_name, raw_key, raw_value, raw_headers, parsed_row, source, event_time, attempt, first_failed_at,
    last_failed_at, status, replay_id, status_before, home_query_id, home_batch_id, closed_at, closed_by, reason
)
SELECT l.dead_letter_id, b.pipeline_id, b.query_id, b.batch_id, b.stage, b.error_class, l.sqlstate, l.message,
    l.column_name, l.constraint_name, l.raw_key, l.raw_value, l.raw_headers, l.parsed_row, l.source, l.event_time,
    b.attempt, b.first_failed_at, b.last_failed_at, b.status, b.replay_id, b.status_before, b.home_query_id,
    b.home_batch_id, b.closed_at, b.closed_by, b.reason
FROM gone b JOIN letter l USING (bundle_id)"""
_WITH_IDS: Final = """
status IN ('pending', 'parked') AND bundle_id = ANY (ARRAY(
    SELECT bundle_id FROM {schema}.dead_letter_bundled WHERE dead_letter_id = ANY (%(ids)s)
))"""


def of_bundles(wanted: LetterFilter, *, everywhere: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the filter as an SQL condition over bundles, and its values: all that it says but for single letters."""
    return conditions(wanted.model_copy(update={"ids": ()}), everywhere=everywhere)


def take_apart(conn: Connection, schema: str, chosen: str, values: dict[str, Any]) -> int:
    """Make the letters of the bundles that meet the condition rows of their own; return how many letters.

    In the caller's transaction. Waits for others that change these bundles, and leaves those alone that they moved on.
    """
    return query(conn, schema, TAKE_APART.replace("CHOSEN", chosen), values).rowcount


def single_out(conn: Connection, schema: str, wanted: LetterFilter) -> int:
    """Take the bundles apart that hold letters which the filter names by their ids, and that wait."""
    return take_apart(conn, schema, _WITH_IDS, {"ids": list(wanted.ids)}) if wanted.ids else 0
