"""The statement that stores dead letters, rendered on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import sql

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.records import BatchIdentity
from spark_jobs.sinks.merging import of_attempts
from spark_jobs.sinks.parts import PartReport

LETTER_COLUMNS = """
    stage text, error_class text, sqlstate text, message text, column_name text, constraint_name text, raw_key text,
    raw_value text, raw_headers text, parsed_row text, source text, event_time text"""

# What the server cannot hold, or is not written as it writes years, is left out: it would refuse all letters.
_YEAR = "substring(l.event_time FROM '^([0-9]{4,6})-')::integer"
_EVENT_TIME = (
    f"CASE WHEN {_YEAR} BETWEEN 1 AND CASE WHEN l.event_time ~ ' BC$' THEN 4713 ELSE 294275 END "
    "THEN l.event_time::timestamptz END"
)
# A record that a redrive has sent again says in a header how often it had failed.
_SAID = "encode(decode(h ->> 'value', 'base64'), 'escape')"
_ATTEMPT = (
    f"1 + coalesce((SELECT max(CASE WHEN {_SAID} ~ '^[0-9]{{1,3}}$' THEN {_SAID}::integer END) "  # noqa: S608
    "FROM jsonb_array_elements(CASE WHEN l.raw_headers LIKE '%etl.dead-letter.attempt%' "
    "THEN l.raw_headers::jsonb END) AS h WHERE h ->> 'key' = 'etl.dead-letter.attempt'), 0)"
)
# Most letters of a bundle: what has to be moved when one of them is treated unlike the others.
_BUNDLE: Final = 1_000
# The same for letters that failed in the same way, and for nothing that another statement stores.
_KIND: Final = f"(SELECT id FROM one), place / {_BUNDLE}, stage, error_class, raw_value IS NULL, attempt"  # noqa: S608
_BUNDLE_ID: Final = f"encode(substr(sha256(convert_to(concat_ws(E'\\x1f', {_KIND}), 'UTF8')), 1, 16), 'hex')::uuid"
_OWN: Final = (
    "id, bundle_id, sqlstate, message, column_name, constraint_name, raw_key, raw_value, raw_headers, parsed_row, "
    "source, event_time"
)


def insert_letters(
    schema: str, letters: str, pipeline: str, query: str, batch: str, *, identified: bool = False, counted: bool = False
) -> str:
    """Return the statement that stores dead letters, those that failed in the same way in bundles.

    :param schema: the tracker's schema, quoted. :param letters: SQL of a set of rows ``letter(envelope)``.
    :param pipeline: SQL of the pipeline's id; likewise ``query`` and ``batch``.
    :param identified: whether a letter brings its ``id`` and ``failed_at``, the same for all.
    :param counted: whether the statement answers their number.
    """
    # The commit point of a dead letter is its batch's: this runs in the same transaction.
    identity, moment = ("letter.id", "letter.failed_at") if identified else ("gen_random_uuid()", "one.moment")
    store = f"INSERT INTO {schema}.dead_letter_bundled (dead_letter_{_OWN}) SELECT {_OWN} FROM letter"  # noqa: S608
    return f"""
WITH one AS MATERIALIZED (SELECT gen_random_uuid() AS id, clock_timestamp() AS moment), read AS (
    SELECT {identity} AS id, {moment} AS failed_at, row_number() OVER () - 1 AS place, l.stage, l.error_class,
        l.sqlstate, l.message, l.column_name, l.constraint_name, decode(l.raw_key, 'base64') AS raw_key,
        decode(l.raw_value, 'base64') AS raw_value, l.raw_headers::jsonb AS raw_headers,
        l.parsed_row::jsonb AS parsed_row, l.source::jsonb AS source, {_EVENT_TIME} AS event_time, {_ATTEMPT} AS attempt
    FROM one, {letters}, json_to_record(letter.envelope::json) AS l({LETTER_COLUMNS})
), letter AS MATERIALIZED (
    SELECT read.*, {_BUNDLE_ID} AS bundle_id FROM read
), bundle AS (
    INSERT INTO {schema}.dead_letter_bundle (bundle_id, pipeline_id, query_id, batch_id, stage, error_class,
        has_raw_value, attempt, letters, first_failed_at, last_failed_at)
    SELECT bundle_id, {pipeline}, {query}, {batch}, min(stage), min(error_class), bool_or(raw_value IS NOT NULL),
        min(attempt), count(*), min(failed_at), min(failed_at)
    FROM letter GROUP BY bundle_id
){f", stored AS ({store} RETURNING 1) SELECT count(*) FROM stored" if counted else store}"""  # noqa: S608


def insert_letters_from_json(schema: str) -> str:
    """Return the statement for a JSON array of envelopes. Parameters: pipeline, query, batch id, array; all text."""
    letters = "json_array_elements_text($4::json) AS letter(envelope)"
    return insert_letters(schema, letters, "$1::text", "$2::text", "$3::bigint")


def insert_identified(conn: Connection, schema: str, rows: str, identity: BatchIdentity) -> str:
    """Return the statement that stores letters which have their ids already, and answers their number.

    :param schema: the tracker's schema, quoted. :param rows: query for rows ``(id, failed_at, envelope)``.
    """
    literals = [sql.Literal(value).as_string(conn) for value in identity.key]
    return insert_letters(schema, f"({rows}) AS letter", *literals, identified=True, counted=True)


def counted_letters_from(
    conn: Connection, schema: str, staging: sql.Composable, reports: Sequence[PartReport], identity: BatchIdentity
) -> str:
    """Return the statement that takes the winning attempts' letters from a staging table, and answers their number.

    :param schema: the tracker's schema, quoted.
    """
    attempts = sql.SQL(of_attempts([report.attempt for report in reports]))
    source = sql.SQL("(SELECT envelope FROM {} WHERE envelope IS NOT NULL AND {}) AS letter").format(staging, attempts)
    literals = [sql.Literal(value).as_string(conn) for value in identity.key]
    return insert_letters(schema, source.as_string(conn), *literals, counted=True)
