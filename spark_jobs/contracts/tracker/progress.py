"""The progress of micro-batches: the newest thousand of each pipeline, failed ones among them.

For people and links, not for the books: those are in ``batch_tracker``. Written beside the commits, so it may lag a few
seconds, and a crash of the server may cost the last rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction

KEPT_ROWS: Final = 1_000
"""How many rows a pipeline keeps; a run that is under way may have :data:`TRIM_EVERY` more."""
TRIM_EVERY: Final = 100
"""After how many rows written a run deletes what is too old."""
_TRIM_STEP: Final = 500
# Nobody's commit may wait for progress, and progress waits for nobody's maintenance.
_LOCK_TIMEOUT_MS: Final = 1_000

Outcome = Literal["completed", "failed"]
Phase = Literal["planning", "checking", "writing", "committed"]


class BatchProgress(BaseModel):
    """One micro-batch as one Spark query has carried it out, or tried to.

    Rows are rows of the source; durations are milliseconds; what Spark did not tell is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline_id: str
    query_id: str
    """Of the checkpoint."""
    batch_id: int | None
    """None where Spark failed and nobody can tell at which micro-batch."""
    spark_run_id: str
    """Of the start of the Spark query: a micro-batch that is done again has another one."""
    run_id: str
    epoch: int
    attempt: int
    """How often this run has tried the micro-batch, from 1."""
    outcome: Outcome
    phase: Phase | None = None
    """How far a failed one came: Spark's ``planning`` before our code; ``checking`` fence, identity and ledger;
    ``writing`` (evaluating included), of which nothing stayed; or ``committed``, and failed only afterwards."""
    triggered_at: datetime | None = None
    """By the driver's clock."""
    duration_ms: int | None = None
    durations: dict[str, int] | None = None
    """By Spark's own phases: ``latestOffset``, ``queryPlanning``, ``addBatch``, ``commitOffsets``, …"""
    input_rows: int | None = None
    input_rows_per_second: float | None = None
    processed_rows_per_second: float | None = None
    watermark: datetime | None = None
    event_time: dict[str, Any] | None = None
    """Spark's ``min``, ``max``, ``avg`` and ``watermark``, as it wrote them."""
    sources: list[dict[str, Any]] | None = None
    """As Spark gives them: ``startOffset``, ``endOffset``, ``latestOffset``, ``metrics``, …"""
    backlog_rows: int | None = None
    """What the source had beyond the micro-batch when Spark asked it for its latest offset."""
    backlog_bytes: int | None = None
    state_rows: int | None = None
    state_bytes: int | None = None
    """Memory of the state stores."""
    state_operators: list[dict[str, Any]] | None = None
    error: dict[str, Any] | None = None
    """Of a failed one: type, what, found, expected, cure; cut, and without secrets."""
    progress_id: int | None = None
    """The order of writing; given by the table."""
    recorded_at: datetime | None = None
    """By the server's clock; given by the table."""


_GIVEN: Final = ("progress_id", "recorded_at")
_WRITTEN: Final = ", ".join(name for name in BatchProgress.model_fields if name not in _GIVEN)
_ALL: Final = ", ".join(BatchProgress.model_fields)

# Progress is not worth a wait for the disk, nor one that would keep the heartbeat from its connection.
_NO_WAIT: Final = "SELECT set_config('synchronous_commit', 'off', true), set_config('statement_timeout', '5s', true)"
_INSERT: Final = f"""
INSERT INTO {{schema}}.query_progress ({_WRITTEN})
SELECT {_WRITTEN} FROM jsonb_populate_recordset(NULL::{{schema}}.query_progress, %(rows)s::jsonb)
ON CONFLICT DO NOTHING"""  # noqa: S608
_TRIM: Final = """
DELETE FROM {schema}.query_progress WHERE progress_id IN (
    SELECT progress_id FROM {schema}.query_progress WHERE pipeline_id = %(pipeline_id)s
    ORDER BY progress_id DESC OFFSET %(kept)s LIMIT %(step)s
)"""
_RECENT: Final = f"""
SELECT {_ALL} FROM {{schema}}.query_progress WHERE pipeline_id = %(pipeline_id)s
ORDER BY progress_id DESC LIMIT %(limit)s"""  # noqa: S608


def write_progress(conn: Connection, schema: str, rows: Sequence[BatchProgress]) -> None:
    """Write rows in their order, all or none; those that are there already stay as they are.

    :raises EtlError: classified; nothing was written, or nobody knows: doing it again is right.
    """
    if not rows:
        return
    text = json.dumps([row.model_dump(mode="json", exclude=set(_GIVEN)) for row in rows])
    with short_transaction(conn, "Writing the micro-batches' progress", lock_timeout_ms=_LOCK_TIMEOUT_MS):
        query(conn, schema, _NO_WAIT)
        query(conn, schema, _INSERT, {"rows": text})


def trim_progress(conn: Connection, schema: str, pipeline_id: str) -> int:
    """Delete a pipeline's rows beyond the newest :data:`KEPT_ROWS`, in small steps; return how many."""
    values = {"pipeline_id": pipeline_id, "kept": KEPT_ROWS, "step": _TRIM_STEP}
    deleted = 0
    while True:
        with short_transaction(conn, "Deleting old progress", lock_timeout_ms=_LOCK_TIMEOUT_MS):
            query(conn, schema, _NO_WAIT)
            step = query(conn, schema, _TRIM, values).rowcount
        deleted += step
        if step < _TRIM_STEP:
            return deleted


def recent_progress(conn: Connection, schema: str, pipeline_id: str, limit: int) -> list[BatchProgress]:
    """Return a pipeline's newest rows, the newest first; none for a pipeline without any."""
    with classified(f"Reading the progress of pipeline {pipeline_id!r}"):
        values = {"pipeline_id": pipeline_id, "limit": limit}
        found = query(conn, schema, _RECENT, values, row_factory=dict_row).fetchall()
    return [BatchProgress(**row) for row in found]


def newest_progress(conn: Connection, schema: str, pipeline_id: str) -> BatchProgress | None:
    """Return what was last written of a pipeline, completed or failed; None when there is nothing."""
    return next(iter(recent_progress(conn, schema, pipeline_id, 1)), None)
