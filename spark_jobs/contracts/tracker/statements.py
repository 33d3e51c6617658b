"""The statements of a commit, as SQL text. Standard library only: executors import it.

Each takes text parameters only (``$1`` …; JSON where there is more to say), and each result is text or a boolean, so
that one text runs through psycopg's ``RawCursor`` and through ADBC alike. ``schema`` is the tracker's schema as an
identifier that is quoted already (:func:`quote_identifier`).

A commit runs them in this order, in one transaction of isolation level READ COMMITTED:
``begin_settings``, the target's rows, ``insert_batch``, ``was_removed``, ``insert_files``, ``insert_gaps``,
``notify``, and last ``lock_epoch``, whose answer must be true: else roll back.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Final

CHANNEL: Final = "etl_batch"
"""The channel on which progress events are sent."""

PROJECT: Final = "etl:"
"""What the names of this project's sessions and prepared transactions begin with."""

MAX_NOTIFY_BYTES: Final = 7999
"""PostgreSQL refuses a longer payload."""

_ROW_COLUMNS: Final = """
    pipeline_id, query_id, batch_id, record_count, checkpoint_location, run_id, epoch, start_offsets, end_offsets,
    source_digest, watermark, event_time_min, event_time_max, duration_ms, source_rows, passed_rows, rejected_rows,
    dead_lettered_rows, late_rows, filtered_rows, deduplicated_rows, sink_rows, written_rows,
    write_dead_lettered_rows, write_deduplicated_rows, strategy, strategy_reason, state_rows"""


def quote_identifier(name: str) -> str:
    """Return the name as a quoted SQL identifier.

    :raises ValueError: if the name is empty or holds a null character.
    """
    if not name or "\0" in name:
        raise ValueError(f"not a PostgreSQL identifier: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def tag(pipeline_id: str, schema: str = "etl") -> str:
    """Return what the application names of a pipeline's sessions begin with; ``schema`` is the tracker's, unquoted."""
    # Two trackers in one database may know pipelines of the same name: they must not end each other's sessions.
    return f"{PROJECT}{sha256(json.dumps([schema, pipeline_id]).encode()).hexdigest()[:24]}:"


def application_name(pipeline_id: str, epoch: int, schema: str = "etl") -> str:
    """Return the name by which a newer run finds this session and ends it; fewer than 63 bytes."""
    return f"{tag(pipeline_id, schema)}{epoch}"


DRIVER_IDLE_TIMEOUT = "30s"
"""Of the driver's own transactions, which wait for nobody between two statements."""


def begin_settings() -> str:
    """Tag the transaction, bound how long a frozen client can hold its locks, and wait for the disk at COMMIT.

    No session state: pooler-safe. A commit that the server may forget is none: the checkpoint would be ahead of it.
    What the role or the database says of how long statements and transactions may take is meant for other work: a COPY
    lasts as long as Spark has rows, and cut short it would be cut short at each repetition.

    Parameters: application name (:func:`application_name`), ``lock_timeout``,
    ``idle_in_transaction_session_timeout``, the last two with their unit (``30s``).
    """
    return (
        "SELECT set_config('application_name', $1::text, true), set_config('lock_timeout', $2::text, true), "
        "set_config('idle_in_transaction_session_timeout', $3::text, true), "
        "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
        "ELSE current_setting('synchronous_commit') END, true), set_config('statement_timeout', '0', true), "
        "CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL "
        "THEN set_config('transaction_timeout', '0', true) END"
    )


def bound_the_commit() -> str:
    """Bound how long a client that freezes from here on can hold the fence; to be sent before :func:`lock_epoch`."""
    return "SET LOCAL idle_in_transaction_session_timeout = '300s'"


def lock_epoch(schema: str) -> str:
    """Lock the fence row until the transaction ends; one boolean: may this run commit? No row: unknown pipeline.

    Parameters: pipeline id, epoch, run id.
    """
    # NO KEY: foreign keys that point at the row must not wait for a commit.
    return f"{read_epoch(schema)} FOR NO KEY UPDATE"  # as the row is after the wait: PostgreSQL evaluates it again


def read_epoch(schema: str) -> str:
    """Ask the same as :func:`lock_epoch` without a lock: an answer that may be out of date when it arrives."""
    return (
        f"SELECT (epoch = $2::bigint AND newest_run_id = $3::text) IS TRUE AS holds FROM {schema}.pipeline "  # noqa: S608
        "WHERE pipeline_id = $1::text"
    )


def insert_batch(schema: str) -> str:
    """Insert a ledger row. Parameter: :meth:`BatchRecord.row_json`.

    A second insert of the same identity raises ``unique_violation`` (23505): the later attempt must roll back.
    """
    return (
        f"INSERT INTO {schema}.batch_tracker ({_ROW_COLUMNS}) SELECT {_ROW_COLUMNS} "  # noqa: S608
        f"FROM jsonb_populate_record(NULL::{schema}.batch_tracker, $1::jsonb)"
    )


def insert_files(schema: str) -> str:
    """Insert the files that a batch read, after its ledger row. Parameter: :meth:`BatchRecord.files_json`."""
    return (
        f"INSERT INTO {schema}.batch_file (pipeline_id, query_id, batch_id, path, modified_at, size_bytes) "  # noqa: S608
        "SELECT b->>'pipeline_id', b->>'query_id', (b->>'batch_id')::bigint, f.path, f.modified_at, f.size_bytes "
        "FROM (SELECT $1::jsonb AS b) AS batch, "
        "jsonb_to_recordset(b->'files') AS f(path text, modified_at timestamptz, size_bytes bigint)"
    )


def insert_gaps(schema: str) -> str:
    """Insert the source rows that were gone. Parameter: :meth:`BatchRecord.gaps_json`."""
    return (
        f"INSERT INTO {schema}.source_gap (pipeline_id, query_id, batch_id, source, missing_rows, reason) "  # noqa: S608
        "SELECT b->>'pipeline_id', b->>'query_id', (b->>'batch_id')::bigint, g.source, g.missing_rows, g.reason "
        "FROM (SELECT $1::jsonb AS b) AS batch, "
        "jsonb_to_recordset(b->'gaps') AS g(source jsonb, missing_rows bigint, reason text)"
    )


def notify() -> str:
    """Send a progress event when the transaction commits. Parameter: the event as JSON, below 8000 bytes."""
    return f"SELECT pg_notify('{CHANNEL}', $1::text)"


def find_batch(schema: str) -> str:
    """Find a micro-batch by its key: one text column for :meth:`StoredBatch.from_json`, or no row.

    Parameters: :attr:`BatchIdentity.key`. A batch that was decided and not committed yet has the status ``decided``;
    one that was committed and that a cleanup has removed since has ``removed``, and nothing else is known of it.
    """
    where = "WHERE pipeline_id = $1::text AND query_id = $2::text AND batch_id = $3::bigint"
    return (
        "SELECT jsonb_build_object('start_offsets', start_offsets, 'end_offsets', end_offsets, "  # noqa: S608
        "'source_digest', source_digest, 'run_id', run_id, 'epoch', epoch, 'status', status)::text AS batch "
        f"FROM {schema}.batch_tracker {where} UNION ALL "
        "SELECT jsonb_build_object('start_offsets', record->'start_offsets', 'end_offsets', record->'end_offsets', "
        "'source_digest', record->'source_digest', 'run_id', run_id, 'epoch', epoch, 'status', 'decided')::text "
        f"FROM {schema}.batch_decision {where} UNION ALL "
        "SELECT jsonb_build_object('start_offsets', NULL, 'end_offsets', NULL, 'source_digest', NULL, "
        "'run_id', '', 'epoch', 0, 'status', 'removed')::text "
        f"FROM {schema}.batch_retention "
        "WHERE pipeline_id = $1::text AND query_id = $2::text AND removed_through_batch >= $3::bigint "
        f"AND NOT EXISTS (SELECT FROM {schema}.batch_tracker {where})"
    )


def was_removed(schema: str) -> str:
    """Ask whether a cleanup has removed the batch: one boolean. Parameters: :attr:`BatchIdentity.key`.

    To be asked after :func:`insert_batch`, in a statement of its own: the row that would have refused a second attempt
    may have been removed while that waited for it.
    """
    return (
        f"SELECT EXISTS (SELECT FROM {schema}.batch_retention "  # noqa: S608
        "WHERE pipeline_id = $1::text AND query_id = $2::text AND removed_through_batch >= $3::bigint)"
    )


def has_previous(schema: str) -> str:
    """Ask whether the ledger holds the batch before: one boolean. Parameters: :attr:`BatchIdentity.key`."""
    return (
        f"SELECT EXISTS (SELECT FROM {schema}.batch_tracker "  # noqa: S608
        "WHERE pipeline_id = $1::text AND query_id = $2::text AND batch_id = $3::bigint - 1)"
    )


def insert_part(schema: str) -> str:
    """Say in a part's own transaction that the part is there.

    Parameters: the prepared transaction's name, :attr:`BatchIdentity.key`, the number of rows.
    """
    return (
        f"INSERT INTO {schema}.batch_part (name, pipeline_id, query_id, batch_id, rows) "  # noqa: S608
        "VALUES ($1::text, $2::text, $3::text, $4::bigint, $5::bigint)"
    )


def part_has_lost(schema: str) -> str:
    """Ask, after a part was prepared, whether nobody will ever commit it: one boolean.

    Parameters: pipeline id, epoch, run id (as :func:`lock_epoch`), query id, batch id, the part's name.
    """
    # A later look than the decision's: whoever decided without this part has left it to roll itself back.
    return (
        "SELECT NOT coalesce((SELECT epoch = $2::bigint AND newest_run_id = $3::text "  # noqa: S608
        f"FROM {schema}.pipeline WHERE pipeline_id = $1::text), false) "
        f"AND NOT EXISTS (SELECT FROM {schema}.batch_decision d, jsonb_to_recordset(d.winners) AS w(name text) "
        "WHERE d.pipeline_id = $1::text AND d.query_id = $4::text AND d.batch_id = $5::bigint AND w.name = $6::text) "
        f"OR EXISTS (SELECT FROM {schema}.batch_tracker "
        "WHERE pipeline_id = $1::text AND query_id = $4::text AND batch_id = $5::bigint) "
        f"OR EXISTS (SELECT FROM {schema}.batch_retention "
        "WHERE pipeline_id = $1::text AND query_id = $4::text AND removed_through_batch >= $5::bigint) "
        f"OR EXISTS (SELECT FROM {schema}.batch_decision d "
        "WHERE d.pipeline_id = $1::text AND d.query_id = $4::text AND d.batch_id = $5::bigint "
        "AND NOT EXISTS (SELECT FROM jsonb_to_recordset(d.winners) AS w(name text) WHERE w.name = $6::text))"
    )


def count_duplicate(schema: str) -> str:
    """Count that a committed micro-batch came again and was skipped, at the batch and at the run that skipped it.

    Parameters: :attr:`BatchIdentity.key`, run id.
    """
    return (
        f"WITH skipped AS (UPDATE {schema}.batch_tracker SET duplicate_count = duplicate_count + 1 "  # noqa: S608
        "WHERE pipeline_id = $1::text AND query_id = $2::text AND batch_id = $3::bigint RETURNING 1) "
        f"UPDATE {schema}.pipeline_run SET duplicates = duplicates + 1 "
        "WHERE run_id = $4::text AND EXISTS (SELECT FROM skipped)"
    )
