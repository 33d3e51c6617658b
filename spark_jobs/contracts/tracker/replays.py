"""The life of a replay in the ledger: it takes letters, settles them with its micro-batches, and gives the rest back.

Whatever becomes of a driver, a letter comes home in the transaction that writes its row, and only while it still
belongs to that replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import OUTCOMES, ClassOutcome, ReplayRequest, ReplaySummary
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction
from spark_jobs.contracts.tracker.letters import known_pipelines
from spark_jobs.contracts.tracker.moving import among_moving_letters
from spark_jobs.contracts.tracker.run_state import SILENCE, SILENT_AFTER_SECONDS, newest_request
from spark_jobs.contracts.tracker.taking import Taken, Taking

_RELEASE: Final = """
WITH whole AS (
    UPDATE {schema}.dead_letter_bundle SET status = status_before, status_before = NULL, replay_id = NULL
    WHERE status = 'replaying' AND replay_id = ANY (%(replays)s) RETURNING letters
), single AS (
    UPDATE {schema}.dead_letter_single SET status = status_before, status_before = NULL, replay_id = NULL
    WHERE status = 'replaying' AND replay_id = ANY (%(replays)s) RETURNING 1
), ended AS (
    UPDATE {schema}.dead_letter_replay SET state = 'released', ended_at = clock_timestamp()
    WHERE replay_id = ANY (%(replays)s) AND state = 'open'
)
SELECT (SELECT count(*) FROM single) + (SELECT coalesce(sum(letters), 0) FROM whole)"""
# A driver without a sign of life for so long counts as gone. If it is not, it finds its letters taken.
_ABANDONED: Final = f"""
SELECT r.replay_id FROM {{schema}}.dead_letter_replay r
WHERE r.pipeline_id = %(pipeline_id)s AND r.state = 'open' AND NOT r.dry_run AND NOT EXISTS (
    SELECT FROM {{schema}}.pipeline_run run
    WHERE run.pipeline_id = r.pipeline_id || '/replay/' || r.replay_id AND run.ended_at IS NULL
      AND run.state IN ('registered', 'running') AND {SILENCE} < {SILENT_AFTER_SECONDS}
)"""  # noqa: S608


def replay_request(
    conn: Connection, schema: str, replay: ReplayRequest, *, started_by: str, run_id: str | None = None
) -> RunRequest:
    """Return the request of a run that replays, by the configuration of the pipeline's newest run.

    :raises ConfigError: no run of the pipeline is known.
    """
    newest = _newest_request(conn, schema, replay.letters.pipeline_id)
    return RunRequest(
        run_id=run_id or str(uuid4()),
        pipeline_id=replay.own_pipeline_id,
        config=newest["config"],
        started_by=started_by,
        replay=replay,
        tracker_schema=schema,
    )


def _newest_request(conn: Connection, schema: str, pipeline_id: str) -> dict[str, Any]:
    found = newest_request(conn, schema, pipeline_id)
    if found is None:
        known = known_pipelines(conn, schema)
        raise ConfigError(
            f"The pipeline {pipeline_id!r} is not in the ledger, so nothing says how to replay its dead letters",
            found=f"pipelines with dead letters: {', '.join(known) or 'none'}",
            expected="a pipeline that ran at least once",
            cure="correct the pipeline's id, run the pipeline once, or discard its letters",
        )
    return found


def open_replay(conn: Connection, schema: str, request: ReplayRequest, run_id: str, epoch: int) -> Taken:
    """Take the letters that the request chooses, the oldest first; letters that another replay has are left alone.

    A dry run takes none away from others. Letters of replays whose drivers are gone are freed first. Those that failed
    as often as they may are parked, and those that a redrive has perhaps sent are left to another redrive. A redrive
    leaves those that hold no record, unless their ids are given. A further attempt at the same replay goes on behind
    the positions and micro-batches of the one before.

    :raises FencedError: a newer run of the replay exists.
    """
    with classified("Looking for abandoned replays"):
        abandoned = query(conn, schema, _ABANDONED, {"pipeline_id": request.letters.pipeline_id}).fetchall()
    released = release(conn, schema, [row[0] for row in abandoned])
    return among_moving_letters(conn, "Taking dead letters", Taking(conn, schema, request, run_id, epoch, released).run)


def release(conn: Connection, schema: str, replays: Sequence[UUID]) -> int:
    """Give back what replays hold, and end them; return how many letters wait again.

    Safe whatever their drivers do: one that still lives finds its letters gone, and commits none of them.
    """
    if not replays:
        return 0
    values = {"replays": list(replays)}
    give_back = partial(query, conn, schema, _RELEASE, values)
    row = among_moving_letters(conn, "Giving back dead letters", lambda: give_back().fetchone())
    return int(row[0]) if row else 0


def finish_replay(conn: Connection, schema: str, summary: ReplaySummary) -> None:
    """Record what came of a replay, and give back what it has not settled."""
    release(conn, schema, [] if summary.dry_run else [summary.replay_id])
    with short_transaction(conn, "Recording the end of a replay"):
        query(
            conn,
            schema,
            "UPDATE {schema}.dead_letter_replay SET state = 'finished', ended_at = clock_timestamp(), "
            "summary = %(summary)s WHERE replay_id = %(replay_id)s",
            {"summary": Jsonb(summary.to_json()), "replay_id": summary.replay_id},
        )


def read_summary(conn: Connection, schema: str, replay_id: UUID) -> ReplaySummary | None:
    """Return what came of a replay; None while it has not ended."""
    with classified("Reading a replay's summary"):
        row = query(
            conn, schema, "SELECT summary FROM {schema}.dead_letter_replay WHERE replay_id = %s", (replay_id,)
        ).fetchone()
    return ReplaySummary.model_validate(row[0]) if row and row[0] is not None else None


def total(outcomes: Sequence[ClassOutcome]) -> list[ClassOutcome]:
    """Add up outcomes of the same stage and error class, the most letters first."""
    kinds: dict[tuple[str, str], ClassOutcome] = {}
    for one in outcomes:
        before = kinds.get((one.stage, one.error_class), ClassOutcome(stage=one.stage, error_class=one.error_class))
        kinds[one.stage, one.error_class] = before.model_copy(
            update={name: getattr(before, name) + getattr(one, name) for name in OUTCOMES}
        )
    return sorted(kinds.values(), key=lambda one: (-one.taken, one.stage, one.error_class))


def list_replays(
    conn: Connection, schema: str, pipeline_id: str | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """Return the newest replays, as JSON values."""
    with classified("Listing replays"):
        rows: list[dict[str, Any]] = query(
            conn,
            schema,
            "SELECT replay_id::text, pipeline_id, mode, dry_run, state, letters, requested_by, requested_at::text, "
            "ended_at::text, summary FROM {schema}.dead_letter_replay "
            "WHERE %(pipeline_id)s::text IS NULL OR pipeline_id = %(pipeline_id)s "
            "ORDER BY requested_at DESC LIMIT %(limit)s",
            {"pipeline_id": pipeline_id, "limit": limit},
            row_factory=dict_row,
        ).fetchall()
    return rows
