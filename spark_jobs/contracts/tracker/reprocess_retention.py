"""Removing what was reprocessed long ago, once the ledger has no micro-batch any more that it says something about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from spark_jobs.contracts.cleanup import CleanupRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.short_deletes import BusyError, Problems, repeat, short_delete

# While a micro-batch is in the ledger, what was done again of it says what stands of it in the target.
_ENDED: Final = """
SELECT r.reprocess_id, r.pipeline_id, r.pipeline_id || '/reprocess/' || r.reprocess_id AS own
FROM {schema}.reprocess r
WHERE greatest(r.requested_at, r.ended_at) < %(before)s
  AND NOT EXISTS (SELECT FROM {schema}.batch_reprocessed b WHERE b.reprocess_id = r.reprocess_id)
  AND NOT EXISTS (
    SELECT FROM {schema}.pipeline_run run WHERE run.pipeline_id = r.pipeline_id || '/reprocess/' || r.reprocess_id
      AND greatest(run.registered_at, run.heartbeat_at, run.ended_at) >= %(before)s
  )"""
_LOOK: Final = f"""{_ENDED}
  AND (%(pipelines)s::text[] IS NULL OR r.pipeline_id = ANY (%(pipelines)s::text[]))
ORDER BY r.requested_at"""
# Whoever begins another attempt writes to the row of its pipeline first, and waits for this.
_LOCK_OWN: Final = "SELECT FROM {schema}.pipeline WHERE pipeline_id = %(own)s FOR UPDATE SKIP LOCKED"
_LOCK: Final = f"{_ENDED} AND r.reprocess_id = %(reprocess_id)s FOR UPDATE OF r SKIP LOCKED"
_BATCHES: Final = """
DELETE FROM {schema}.batch_tracker WHERE pipeline_id = %(own)s AND (query_id, batch_id) IN (
    SELECT query_id, batch_id FROM {schema}.batch_tracker WHERE pipeline_id = %(own)s ORDER BY query_id, batch_id
    LIMIT %(most)s
)"""
_LAST: Final = (
    "DELETE FROM {schema}.run_retry WHERE run_id IN "
    "(SELECT run_id FROM {schema}.pipeline_run WHERE pipeline_id = %(own)s)",
    "DELETE FROM {schema}.query_progress WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.batch_retention WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.batch_file_retained WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.pipeline_query WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.pipeline_run WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.pipeline WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.reprocess WHERE reprocess_id = %(reprocess_id)s",
)


@dataclass(frozen=True, slots=True)
class ReprocessCleanup:
    """One pass over what was reprocessed.

    :param before: what ended, and had its last attempt, before this time is old enough.
    """

    conn: Connection
    schema: str
    request: CleanupRequest
    before: datetime
    problems: Problems

    def reprocesses(self) -> Iterator[tuple[str, int]]:
        """Remove, or count, what was reprocessed, with its runs and micro-batches; pipeline and number."""
        values = {"before": self.before, "pipelines": list(self.request.pipelines) or None}
        with classified("Looking for what was reprocessed"):
            rows = query(self.conn, self.schema, _LOOK, values).fetchall()
        for reprocess_id, pipeline_id, own in rows:
            with self.problems.aside(pipeline_id):
                found = {**values, "reprocess_id": reprocess_id, "own": own, "most": self.request.batch_size}
                yield pipeline_id, 1 if self.request.dry_run else self._remove(pipeline_id, found)

    def _remove(self, pipeline_id: str, values: dict[str, Any]) -> int:
        for statements in ((_BATCHES,), _LAST):
            done = repeat(partial(self._step, statements, values), self.request.pause_seconds)
            self.problems.removed(pipeline_id, done)
            if done.stopped:
                return 0
        return 1

    def _step(self, statements: tuple[str, ...], values: dict[str, Any]) -> tuple[int, bool]:
        with short_delete(self.conn, "Removing what was reprocessed"):
            for lock in (_LOCK_OWN, _LOCK):
                if not query(self.conn, self.schema, lock, values).rowcount:
                    raise BusyError
            removed = [query(self.conn, self.schema, statement, values).rowcount for statement in statements][-1]
        return removed, statements == (_BATCHES,) and removed == self.request.batch_size
