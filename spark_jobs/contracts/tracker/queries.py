"""Questions to the ledger: what a run did, and how pipelines are."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.run_request import RunResult, RunState
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.records import BOOK_NAMES
from spark_jobs.contracts.tracker.run_state import NEWEST_RUN, SILENCE, RunPhase, run_phase

_SUMS: Final = ", ".join(f"coalesce(sum({name}_rows), 0)::bigint AS {name}" for name in BOOK_NAMES)

# The table's own CHECKs say the same: asked again, because a verdict should not rest on a constraint nobody dropped.
UNBALANCED: Final = """
    source_rows <> passed_rows + rejected_rows + dead_lettered_rows + late_rows + filtered_rows + deduplicated_rows
    OR sink_rows <> written_rows + write_dead_lettered_rows + write_deduplicated_rows
    OR record_count <> written_rows"""

_RUN: Final = """
SELECT run.run_id, run.pipeline_id, run.state, run.duplicates,
       (SELECT count(*) FROM {schema}.run_retry r WHERE r.run_id = run.run_id) AS retries,
       extract(
           epoch FROM coalesce(run.ended_at, clock_timestamp()) - coalesce(run.started_at, run.registered_at)
       )::float AS duration_seconds
FROM {schema}.pipeline_run run WHERE run.run_id = %(run_id)s"""

_RUN_BATCHES: Final = f"""
SELECT count(*) AS batches, count(*) FILTER (WHERE {UNBALANCED}) AS unbalanced, max(watermark) AS watermark, {_SUMS}
FROM {{schema}}.batch_tracker WHERE run_id = %(run_id)s"""  # noqa: S608

# A run is one query, so its batches are in the order of their ids.
_RUN_OFFSETS: Final = """
SELECT (SELECT start_offsets FROM {schema}.batch_tracker WHERE run_id = %(run_id)s ORDER BY batch_id LIMIT 1),
       (SELECT end_offsets FROM {schema}.batch_tracker WHERE run_id = %(run_id)s ORDER BY batch_id DESC LIMIT 1)"""

_STATUS: Final = f"""
SELECT pipeline.pipeline_id, pipeline.epoch, run.run_id, run.state AS run_state, run.exit_code,
       run.registered_at, run.started_at, run.heartbeat_at, run.ended_at,
       CASE WHEN run.ended_at IS NULL THEN {SILENCE} END AS run_silent_seconds,
       (SELECT count(*) FROM {{schema}}.run_retry r WHERE r.run_id = run.run_id) AS retries,
       last.batch_id AS last_batch_id, last.query_id AS last_query_id, last.processed_at AS last_commit_at,
       extract(epoch FROM clock_timestamp() - last.processed_at)::float AS last_commit_age_seconds, last.watermark,
       books.batches, books.rows, books.duplicates, books.unbalanced,
       (SELECT coalesce(sum(t.letters), 0)::bigint FROM {{schema}}.dead_letter_tally t
        WHERE t.pipeline_id = pipeline.pipeline_id AND t.status = 'pending') AS pending_dead_letters,
       (SELECT count(*) FROM {{schema}}.source_gap g WHERE g.pipeline_id = pipeline.pipeline_id) AS gaps
FROM {{schema}}.pipeline
LEFT JOIN {{schema}}.pipeline_run run ON run.run_id = {NEWEST_RUN}
LEFT JOIN LATERAL (
    SELECT batch_id, query_id, processed_at, watermark FROM {{schema}}.batch_tracker
    WHERE pipeline_id = pipeline.pipeline_id ORDER BY processed_at DESC, batch_id DESC LIMIT 1
) AS last ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS batches, coalesce(sum(record_count), 0)::bigint AS rows,
           coalesce(sum(duplicate_count), 0)::bigint AS duplicates,
           count(*) FILTER (WHERE {UNBALANCED}) AS unbalanced
    FROM {{schema}}.batch_tracker WHERE pipeline_id = pipeline.pipeline_id
) AS books
WHERE pipeline.pipeline_id = %(pipeline_id)s
   OR %(pipeline_id)s::text IS NULL AND pipeline.pipeline_id !~ '/(replay|reprocess)/'
ORDER BY pipeline.pipeline_id"""  # noqa: S608 - constants


class PipelineStatus(BaseModel):
    """How one pipeline is, by its ledger. Times know their zone; ages are seconds; rows are rows of the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline_id: str
    epoch: int
    run_id: str | None
    run_state: RunState | None
    run_phase: RunPhase
    """As :func:`~spark_jobs.contracts.tracker.run_state.run_phase` tells it: a run may be ``running`` and silent."""
    run_silent_seconds: float | None
    """Since the newest run's last sign of life; None once it has ended."""
    exit_code: int | None
    registered_at: datetime | None
    started_at: datetime | None
    heartbeat_at: datetime | None
    ended_at: datetime | None
    retries: int
    """What the newest run did again after passing faults."""
    last_query_id: str | None
    last_batch_id: int | None
    last_commit_at: datetime | None
    last_commit_age_seconds: float | None
    watermark: datetime | None
    batches: int
    rows: int
    duplicates: int
    """How many times a committed micro-batch came again and was skipped."""
    pending_dead_letters: int
    gaps: int
    ledger: Literal["balanced", "unbalanced"]


def summarise_run(conn: Connection, schema: str, run_id: str) -> RunResult:
    """Return what the run did so far, from its committed micro-batches.

    :raises ConfigError: if no such run is registered.
    """
    values = {"run_id": run_id}
    with classified(f"Summarising run {run_id!r}"):
        run = _one(conn, schema, _RUN, values)
        if run is None:
            raise ConfigError(
                f"Run {run_id!r} is not registered in schema {schema!r}",
                cure="check that the connection and the tracker schema are those of the run",
            )
        batches = _one(conn, schema, _RUN_BATCHES, values) or {}
        start_offsets, end_offsets = query(conn, schema, _RUN_OFFSETS, values).fetchone() or (None, None)
    rows = {name: batches[name] for name in BOOK_NAMES}
    return RunResult(
        **run,
        batches=batches["batches"],
        rows=rows,
        start_offsets=start_offsets,
        end_offsets=end_offsets,
        watermark=batches["watermark"],
        ledger="unbalanced" if batches["unbalanced"] else "balanced",
        dead_letters=rows["dead_lettered"] + rows["write_dead_lettered"],
    )


def pipeline_status(conn: Connection, schema: str, pipeline_id: str | None = None) -> list[PipelineStatus]:
    """Return how the pipeline is, or all of them in the order of their ids; a replay's runs only by their own id.

    :raises ConfigError: if the ledger does not know ``pipeline_id``.
    """
    with classified("Reading the pipelines' status"):
        cursor = query(conn, schema, _STATUS, {"pipeline_id": pipeline_id}, row_factory=dict_row)
        rows: list[dict[str, Any]] = cursor.fetchall()
    if pipeline_id is not None and not rows:
        raise ConfigError(
            f"Pipeline {pipeline_id!r} is not in the ledger of schema {schema!r}",
            expected="a pipeline that was started at least once",
            cure="list the known ones with `etl-pipeline status`",
        )
    return [
        PipelineStatus(
            **row,
            run_phase=run_phase(row["run_state"], row["run_silent_seconds"]),
            ledger="unbalanced" if unbalanced else "balanced",
        )
        for row in rows
        for unbalanced in [row.pop("unbalanced")]
    ]


def _one(conn: Connection, schema: str, statement: str, values: dict[str, Any]) -> dict[str, Any] | None:
    row: dict[str, Any] | None = query(conn, schema, statement, values, row_factory=dict_row).fetchone()
    return row
