"""Reading what a run's metrics are made of from the ledger."""

from __future__ import annotations

from typing import Any, Final

from spark_jobs.contracts.run_figures import RunFigures, Waited
from spark_jobs.contracts.tracker.connect import Connection, classified, query

_RUN: Final = "SELECT state, exit_code FROM {schema}.pipeline_run WHERE run_id = %(run_id)s"

_RETRIES: Final = """
SELECT kind, count(*), sum(wait_ms)::float / 1000 FROM {schema}.run_retry WHERE run_id = %(run_id)s GROUP BY kind"""

# By the time, too: that is what the letters' indexes know.
_LETTERS: Final = """
SELECT letter.stage, sum(letter.letters)::bigint
FROM {schema}.pipeline_run run JOIN {schema}.batch_tracker batch USING (run_id), LATERAL (
    SELECT stage, letters, query_id, batch_id FROM {schema}.dead_letter_bundle
    WHERE pipeline_id = run.pipeline_id AND first_failed_at >= run.registered_at
    UNION ALL
    SELECT stage, 1, query_id, batch_id FROM {schema}.dead_letter_single
    WHERE pipeline_id = run.pipeline_id AND first_failed_at >= run.registered_at
) AS letter
WHERE run.run_id = %(run_id)s AND letter.query_id = batch.query_id AND letter.batch_id = batch.batch_id
GROUP BY letter.stage"""

_CHANGES: Final = """
SELECT system, to_state, count(*) FROM {schema}.circuit_breaker_event WHERE run_id = %(run_id)s GROUP BY 1, 2"""

_BREAKERS: Final = "SELECT system, state FROM {schema}.circuit_breaker"


def run_figures(conn: Connection, schema: str, run_id: str) -> RunFigures:
    """Return the figures of a run, also of one that failed or was never registered."""

    def rows(statement: str) -> list[Any]:
        return query(conn, schema, statement, {"run_id": run_id}).fetchall()

    with classified(f"Reading the figures of run {run_id!r}"):
        state, exit_code = next(iter(rows(_RUN)), ("", None))
        return RunFigures(
            state,
            exit_code,
            retries={kind: Waited(times, seconds) for kind, times, seconds in rows(_RETRIES)},
            dead_letters=dict(rows(_LETTERS)),
            breaker_changes={(system, after): times for system, after, times in rows(_CHANGES)},
            breakers=dict(rows(_BREAKERS)),
        )
