"""Taking letters for a replay: SQL.

SINGLES and BUNDLES stand for the conditions of those that are chosen, WORN_OUT for those that failed as often as they
may, LEFT_OUT for those that are counted and not taken.
"""

from __future__ import annotations

from typing import Final

# By ids in an array, never by a join: a planner that knows nothing yet of so many rows would compare each with each.
TAKE: Final = """
WITH chosen AS (
    SELECT dead_letter_id FROM {schema}.dead_letter_single WHERE SINGLES
    ORDER BY first_failed_at, dead_letter_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), single AS (
    UPDATE {schema}.dead_letter_single SET status = 'replaying', status_before = status, replay_id = %(replay_id)s
    WHERE status = ANY (%(waiting)s) AND dead_letter_id = ANY (ARRAY(SELECT dead_letter_id FROM chosen))
    RETURNING dead_letter_id, first_failed_at, stage, error_class, raw_value IS NOT NULL AS has_raw_value
), bundle AS (
    UPDATE {schema}.dead_letter_bundle SET status = 'replaying', status_before = status, replay_id = %(replay_id)s
    WHERE %(whole)s AND status = ANY (%(waiting)s) AND bundle_id = ANY (ARRAY(
        SELECT bundle_id FROM {schema}.dead_letter_bundle WHERE BUNDLES FOR UPDATE SKIP LOCKED
    ))
    RETURNING bundle_id, first_failed_at, stage, error_class, has_raw_value, letters
), taken AS (
    SELECT dead_letter_id AS id, first_failed_at, stage, error_class, has_raw_value, 1 AS letters, false AS whole
    FROM single UNION ALL SELECT *, true FROM bundle
)"""
# A dry run takes nothing away: it looks at each letter where it is.
LOOK: Final = """
WITH taken AS (
    SELECT dead_letter_id AS id, first_failed_at, stage, error_class, raw_value IS NOT NULL AS has_raw_value,
        1 AS letters, false AS whole
    FROM {schema}.dead_letter WHERE SINGLES AND NOT (WORN_OUT) ORDER BY first_failed_at, dead_letter_id LIMIT %(limit)s
)"""
NUMBER: Final = """, placed AS (
    SELECT *, %(first)s + sum(letters) OVER (ORDER BY first_failed_at, id)::bigint AS position FROM taken
), item AS (
    INSERT INTO {schema}.dead_letter_replay_item (
        replay_id, position, dead_letter_id, stage, error_class, has_raw_value
    )
    SELECT %(replay_id)s, position, id, stage, error_class, has_raw_value FROM placed WHERE NOT whole
), held AS (
    INSERT INTO {schema}.dead_letter_replay_bundle (
        replay_id, first_position, last_position, bundle_id, stage, error_class, has_raw_value
    )
    SELECT %(replay_id)s, position - letters, position, id, stage, error_class, has_raw_value FROM placed WHERE whole
)
SELECT coalesce(sum(letters), 0)::bigint, coalesce(
    json_agg(json_build_array(position - letters, position) ORDER BY position) FILTER (WHERE whole), '[]'
) FROM placed"""
# What a bundle has too many letters for, or letters that are not meant.
TOO_LARGE: Final = "letters > %(per_batch)s"
WITHIN_LIMIT: Final = """
bundle_id IN (
    SELECT bundle_id FROM (
        SELECT bundle_id, sum(letters) OVER (ORDER BY first_failed_at, bundle_id) - letters AS before
        FROM {schema}.dead_letter_bundle WHERE BUNDLES
    ) AS oldest WHERE before < %(limit)s
)"""
APART: Final = """
status = ANY (%(waiting)s) AND bundle_id = ANY (ARRAY(
    SELECT bundle_id FROM {schema}.dead_letter_bundle WHERE BUNDLES AND WHICH FOR UPDATE SKIP LOCKED
))"""
SENDABLE: Final = "raw_value IS NOT NULL AND source ? 'topic'"
"""Letters that hold a record, and know the topic that a redrive sends it back to."""
LEFT: Final = "SELECT count(*) FROM {schema}.dead_letter WHERE SINGLES AND LEFT_OUT"
OPEN: Final = """
INSERT INTO {schema}.dead_letter_replay (replay_id, pipeline_id, mode, dry_run, request, requested_by, letters)
VALUES (%(replay_id)s, %(pipeline_id)s, %(mode)s, %(dry_run)s, %(request)s, %(by)s, 0)
ON CONFLICT (replay_id) DO UPDATE SET state = 'open', ended_at = NULL RETURNING letters"""
BATCHES: Final = """
SELECT coalesce(max(batch_id) + 1, 0) FROM {schema}.batch_tracker WHERE pipeline_id = %s AND query_id = %s"""
# What failed as often as it may waits for a person.
PARK: Final = """
WITH whole AS (
    UPDATE {schema}.dead_letter_bundle SET status = 'parked'
    WHERE BUNDLES AND WORN_OUT RETURNING stage, error_class, letters
), single AS (
    UPDATE {schema}.dead_letter_single SET status = 'parked'
    WHERE SINGLES AND WORN_OUT RETURNING stage, error_class
)
SELECT stage, error_class, sum(letters)::bigint FROM (
    SELECT * FROM whole UNION ALL SELECT stage, error_class, 1 FROM single
) AS parked GROUP BY 1, 2"""
WOULD_PARK: Final = """
SELECT stage, error_class, count(*) FROM {schema}.dead_letter WHERE SINGLES AND WORN_OUT GROUP BY 1, 2"""
WORN_OUT: Final = "status = 'pending' AND attempt >= %(most)s"
# Sent to their topic by a redrive that did not live to say so: only another redrive can tell.
PERHAPS_SENT: Final = """
dead_letter_id IN (
    SELECT theirs.dead_letter_id FROM {schema}.dead_letter_redrive m JOIN {schema}.dead_letter_replay_item theirs
        ON theirs.replay_id = m.replay_id AND theirs.position > m.first_position AND theirs.position <= m.last_position
)"""
