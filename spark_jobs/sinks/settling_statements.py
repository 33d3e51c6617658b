"""What becomes of a replay's letters in the transaction that writes their rows: SQL, with braces for what comes later.

``mine`` and ``whole`` are conditions over the places ``i`` of single letters and of bundles that a micro-batch has.
"""

from __future__ import annotations

from typing import Final

from spark_jobs.contracts.tracker.bundles import TAKE_APART

# The letters of the batch's positions, by ids in an array, or each looked up by its id. Never by a join that the
# planner may turn round: the tables may be so new that it knows nothing of them, and it would compare each with each.
_MINE: Final = """
dead_letter_id = ANY (ARRAY(SELECT i.dead_letter_id FROM {schema}.dead_letter_replay_item i WHERE {mine}))"""
_MY_BUNDLES: Final = """
bundle_id = ANY (ARRAY(SELECT i.bundle_id FROM {schema}.dead_letter_replay_bundle i WHERE {whole}))"""
# Of bundles with a letter that failed again. The parameters are those of any statement that stores letters; the batch's
# key is not asked for here.
_OF_AGAIN: Final = """
status = 'replaying' AND replay_id = {replay} AND bundle_id = ANY (ARRAY(
    SELECT l.bundle_id FROM {schema}.dead_letter_bundled l WHERE l.dead_letter_id = ANY (ARRAY(
        SELECT coalesce(said ->> 'dead_letter_id', (said ->> 'source')::jsonb ->> 'dead_letter_id')::uuid
        FROM (SELECT $1::text, $2::text, $3::bigint) AS batch,
            LATERAL (SELECT envelope::json AS said FROM json_array_elements_text($4::json) AS letter(envelope)) AS e
    ))
))"""
APART_AGAIN: Final = TAKE_APART.replace("CHOSEN", _OF_AGAIN)
# A letter that has no record of its source enters by its stage, as the row that it holds: neither may change.
AGAIN: Final = """
WITH batch AS (SELECT $1::text, $2::text, $3::bigint), again AS MATERIALIZED (
    SELECT coalesce(l.dead_letter_id, l.source::jsonb ->> 'dead_letter_id')::uuid AS id, l.*
    FROM json_array_elements_text($4::json) AS letter(envelope),
        json_to_record(letter.envelope::json) AS l(dead_letter_id text, {columns})
)
UPDATE {schema}.dead_letter_single d SET stage = CASE WHEN {record} THEN l.stage ELSE d.stage END,
    error_class = l.error_class, sqlstate = l.sqlstate, message = l.message, column_name = l.column_name,
    constraint_name = l.constraint_name,
    parsed_row = CASE WHEN {record} THEN coalesce(l.parsed_row::jsonb, d.parsed_row)
        ELSE coalesce(d.parsed_row, l.parsed_row::jsonb) END,
    attempt = d.attempt + 1, status_before = NULL, last_failed_at = clock_timestamp(),
    status = CASE WHEN d.attempt + 1 >= {most} THEN 'parked' ELSE 'pending' END
FROM again AS l
WHERE d.status = 'replaying' AND d.dead_letter_id = ANY (ARRAY(SELECT id FROM again)) AND d.dead_letter_id = l.id
  AND d.replay_id = {replay}"""
# A dry run's letters are each in its list: their bundles are taken apart in the transaction that is rolled back.
_OF_DRY: Final = """
status IN ('pending', 'parked') AND bundle_id = ANY (ARRAY(
    SELECT l.bundle_id FROM {schema}.dead_letter_bundled l WHERE l.dead_letter_id = ANY (ARRAY(
        SELECT i.dead_letter_id FROM {schema}.dead_letter_replay_item i WHERE {mine}
    ))
))"""
APART_DRY: Final = TAKE_APART.replace("CHOSEN", _OF_DRY)
TAKE: Final = f"""
UPDATE {{schema}}.dead_letter_single SET status = 'replaying', status_before = status, replay_id = {{replay}}
WHERE status IN ('pending', 'parked') AND {_MINE}"""  # noqa: S608 - constants of this module
HOME: Final = f"""
WITH home AS (
    UPDATE {{schema}}.dead_letter_single SET status = 'replayed', status_before = NULL, home_query_id = {{query}},
        home_batch_id = {{batch}}, closed_at = clock_timestamp()
    WHERE status = 'replaying' AND replay_id = {{replay}} AND {_MINE}
    RETURNING 1
), whole AS (
    UPDATE {{schema}}.dead_letter_bundle SET status = 'replayed', status_before = NULL, home_query_id = {{query}},
        home_batch_id = {{batch}}, closed_at = clock_timestamp()
    WHERE status = 'replaying' AND replay_id = {{replay}} AND {_MY_BUNDLES}
    RETURNING letters
)
SELECT (SELECT count(*) FROM home) + (SELECT coalesce(sum(letters), 0) FROM whole)::bigint"""  # noqa: S608 - constants
OUTCOME: Final = """
WITH letter AS (
    SELECT i.position, i.dead_letter_id, i.stage, i.error_class, d.status, d.stage AS new_stage,
        d.error_class AS new_error_class, d.message AS new_message
    FROM {schema}.dead_letter_replay_item i, LATERAL (
        SELECT d.status, d.stage, d.error_class, d.message FROM {schema}.dead_letter_single d
        WHERE d.dead_letter_id = i.dead_letter_id AND d.status IN ('replayed', 'pending', 'parked') OFFSET 0
    ) AS d WHERE {mine}
), became AS (
    SELECT stage, error_class, status, count(*) AS letters FROM letter GROUP BY 1, 2, 3
    UNION ALL
    SELECT i.stage, i.error_class, 'replayed', i.last_position - i.first_position
    FROM {schema}.dead_letter_replay_bundle i WHERE {whole} AND EXISTS (
        SELECT FROM {schema}.dead_letter_bundle b WHERE b.bundle_id = i.bundle_id AND b.status = 'replayed'
    )
)
SELECT json_build_object(
    'classes', (SELECT coalesce(json_agg(c), '[]') FROM (
        SELECT stage, error_class, sum(letters)::bigint AS taken,
            coalesce(sum(letters) FILTER (WHERE status = 'replayed'), 0)::bigint AS replayed,
            coalesce(sum(letters) FILTER (WHERE status = 'pending'), 0)::bigint AS failed,
            coalesce(sum(letters) FILTER (WHERE status = 'parked'), 0)::bigint AS parked
        FROM became GROUP BY 1, 2
    ) AS c),
    'samples', (SELECT coalesce(json_agg(s), '[]') FROM (
        SELECT dead_letter_id, stage, error_class, new_stage, new_error_class, left(new_message, 500) AS new_message
        FROM letter WHERE status IN ('pending', 'parked') ORDER BY position LIMIT {samples}
    ) AS s)
)::text"""

# What the letters of a micro-batch were when they were taken, as numbers of each kind: whole bundles at once.
KINDS: Final = """
SELECT i.stage, i.error_class, i.has_raw_value, 1::bigint AS letters
FROM {schema}.dead_letter_replay_item i WHERE {mine}
UNION ALL
SELECT i.stage, i.error_class, i.has_raw_value, i.last_position - i.first_position
FROM {schema}.dead_letter_replay_bundle i WHERE {whole}"""
# The same for a micro-batch that came home as a whole.
ALL_HOME: Final = f"""
SELECT json_build_object('classes', coalesce(json_agg(c), '[]'), 'samples', '[]'::json)::text FROM (
    SELECT stage, error_class, sum(letters)::bigint AS taken, sum(letters)::bigint AS replayed
    FROM ({KINDS}) AS i GROUP BY 1, 2
) AS c"""  # noqa: S608 - constants of this module

# Marks of this pipeline's redrives whose letters are all home, or given up.
UNMARK: Final = """
DELETE FROM {schema}.dead_letter_redrive m USING {schema}.dead_letter_replay r
WHERE r.replay_id = m.replay_id
  AND r.pipeline_id = (SELECT pipeline_id FROM {schema}.dead_letter_replay WHERE replay_id = {replay})
  AND NOT EXISTS (
    SELECT FROM {schema}.dead_letter_replay_item i, LATERAL (
        SELECT FROM {schema}.dead_letter_single d
        WHERE d.dead_letter_id = i.dead_letter_id AND d.status NOT IN ('replayed', 'discarded') OFFSET 0
    ) AS not_home
    WHERE i.replay_id = m.replay_id AND i.position > m.first_position AND i.position <= m.last_position
  )"""
