"""Removing what else grows in the ledger: runs with what they did again, changes of circuit breakers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from spark_jobs.contracts.cleanup import CleanupRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.short_deletes import Problems, number, repeat, short_delete

KEPT_RUNS: Final = 100
"""The newest runs of every pipeline stay, however old."""
KEPT_EVENTS: Final = 100
"""The newest changes of every circuit breaker stay, however old."""

_PIPELINES: Final = """
SELECT p.pipeline_id FROM {schema}.pipeline p
WHERE strpos(p.pipeline_id, '/replay/') = 0
  AND (%(pipelines)s::text[] IS NULL OR p.pipeline_id = ANY (%(pipelines)s::text[])) AND EXISTS (
    SELECT FROM {schema}.pipeline_run r WHERE r.pipeline_id = p.pipeline_id AND r.registered_at < %(before)s
)
ORDER BY p.pipeline_id"""
# A run explains its batches, its queries and a decided batch: it stays as long as they do.
_OLD_RUNS: Final = """
FROM {schema}.pipeline_run r
WHERE r.pipeline_id = %(pipeline_id)s AND r.registered_at < %(before)s
  AND greatest(r.registered_at, r.heartbeat_at, r.ended_at) < %(before)s
  AND r.registered_at < (
    SELECT registered_at FROM {schema}.pipeline_run newer WHERE newer.pipeline_id = %(pipeline_id)s
    ORDER BY registered_at DESC OFFSET %(kept)s - 1 LIMIT 1
  )
  AND NOT EXISTS (
    SELECT FROM {schema}.pipeline p WHERE p.pipeline_id = %(pipeline_id)s
      AND (p.newest_run_id = r.run_id OR p.epoch_run_id = r.run_id)
  )
  AND NOT EXISTS (SELECT FROM {schema}.pipeline_query q WHERE q.run_id = r.run_id)
  AND NOT EXISTS (SELECT FROM {schema}.batch_tracker b WHERE b.run_id = r.run_id)
  AND NOT EXISTS (SELECT FROM {schema}.batch_decision d WHERE d.run_id = r.run_id)"""
_CHOOSE_RUNS: Final = f"""
SELECT r.run_id {_OLD_RUNS} ORDER BY r.registered_at LIMIT %(most)s FOR UPDATE OF r SKIP LOCKED"""
_COUNT_RUNS: Final = f"SELECT count(*) {_OLD_RUNS}"
_RETRIES: Final = "DELETE FROM {schema}.run_retry WHERE run_id = ANY (%(runs)s)"
_RUNS: Final = "DELETE FROM {schema}.pipeline_run WHERE run_id = ANY (%(runs)s)"

_OLD_EVENTS: Final = """
FROM {schema}.circuit_breaker_event e
WHERE e.system = %(system)s AND e.at < %(before)s AND e.event_id < (
    SELECT event_id FROM {schema}.circuit_breaker_event newer WHERE newer.system = %(system)s
    ORDER BY at DESC, event_id DESC OFFSET %(kept)s - 1 LIMIT 1
)"""
_EVENTS: Final = f"""
DELETE FROM {{schema}}.circuit_breaker_event WHERE event_id = ANY (ARRAY(
    SELECT event_id {_OLD_EVENTS} ORDER BY at LIMIT %(most)s FOR UPDATE SKIP LOCKED
))"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class HistoryCleanup:
    """One pass over what is no batch's.

    :param before: runs and changes of before this time are old enough.
    """

    conn: Connection
    schema: str
    request: CleanupRequest
    before: datetime
    problems: Problems

    def runs(self) -> Iterator[tuple[str, int]]:
        """Remove, or count, old runs whose batches are gone; pipeline and number."""
        with classified("Looking for old runs"):
            rows = query(self.conn, self.schema, _PIPELINES, self._values(KEPT_RUNS)).fetchall()
        for (pipeline_id,) in rows:
            with self.problems.aside(pipeline_id):
                yield pipeline_id, self._runs({**self._values(KEPT_RUNS), "pipeline_id": pipeline_id})

    def events(self) -> int:
        """Remove, or count, old changes of circuit breakers; they are no pipeline's."""
        if self.request.pipelines:
            return 0
        with classified("Looking for circuit breakers"):
            systems = query(self.conn, self.schema, "SELECT system FROM {schema}.circuit_breaker").fetchall()
        total = 0
        for (system,) in systems:
            values, whose = {**self._values(KEPT_EVENTS), "system": system}, f"circuit breaker {system}"
            with self.problems.aside(whose):
                total += self._removed(whose, "old changes of circuit breakers", _OLD_EVENTS, _EVENTS, values)
        return total

    def _runs(self, values: dict[str, Any]) -> int:
        if self.request.dry_run:
            with classified("Counting old runs"):
                return number(self.conn, self.schema, _COUNT_RUNS, values)

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, "Removing old runs"):
                chosen = [row[0] for row in query(self.conn, self.schema, _CHOOSE_RUNS, values)]
                for statement in (_RETRIES, _RUNS) if chosen else ():
                    query(self.conn, self.schema, statement, {"runs": chosen})
            return len(chosen), len(chosen) == self.request.batch_size

        return self.problems.removed(values["pipeline_id"], repeat(step, self.request.pause_seconds))

    def _removed(self, whose: str, what: str, old: str, remove: str, values: dict[str, Any]) -> int:
        if self.request.dry_run:
            with classified(f"Counting {what}"):
                return number(self.conn, self.schema, f"SELECT count(*) {old}", values)

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, f"Removing {what}"):
                removed = query(self.conn, self.schema, remove, values).rowcount
            return removed, removed == self.request.batch_size

        return self.problems.removed(whose, repeat(step, self.request.pause_seconds))

    def _values(self, kept: int) -> dict[str, Any]:
        return {
            "pipelines": list(self.request.pipelines) or None,
            "before": self.before,
            "most": self.request.batch_size,
            "kept": kept,
        }
