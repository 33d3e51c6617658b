"""Removing progress by its age: each run keeps its own pipeline's to a thousand, however old."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.short_deletes import Repeated, number, repeat, short_delete

KEPT_PROGRESS: Final = 100
"""The newest progress of every pipeline stays, however old."""

_MOST: Final = 1_000
_PAUSE_SECONDS: Final = 0.05
_WITH_PROGRESS: Final = """
SELECT p.pipeline_id FROM {schema}.pipeline p CROSS JOIN LATERAL (
    SELECT recorded_at FROM {schema}.query_progress g WHERE g.pipeline_id = p.pipeline_id ORDER BY progress_id LIMIT 1
) AS oldest
WHERE oldest.recorded_at < %(before)s
ORDER BY p.pipeline_id"""
_OLD_PROGRESS: Final = """
FROM {schema}.query_progress g
WHERE g.pipeline_id = %(pipeline_id)s AND g.recorded_at < %(before)s AND g.progress_id < (
    SELECT progress_id FROM {schema}.query_progress newer WHERE newer.pipeline_id = %(pipeline_id)s
    ORDER BY progress_id DESC OFFSET %(kept)s - 1 LIMIT 1
)"""
_PROGRESS: Final = f"""
DELETE FROM {{schema}}.query_progress WHERE progress_id = ANY (ARRAY(
    SELECT progress_id {_OLD_PROGRESS} ORDER BY progress_id LIMIT %(most)s FOR UPDATE SKIP LOCKED
))"""  # noqa: S608 - constants
_COUNT: Final = f"SELECT count(*) {_OLD_PROGRESS}"


@dataclass(frozen=True, slots=True)
class ProgressExpiry:
    """Progress that has expired. :param before: what was recorded before this time, by the server's clock, has."""

    conn: Connection
    schema: str
    before: datetime

    def pipelines(self) -> list[str]:
        """Return the pipelines that may have expired progress."""
        with classified("Looking for expired progress"):
            found = query(self.conn, self.schema, _WITH_PROGRESS, self._values(None)).fetchall()
        return [row[0] for row in found]

    def count(self, pipeline_id: str) -> int:
        """Return how much of a pipeline's progress has expired."""
        with classified("Counting expired progress"):
            return number(self.conn, self.schema, _COUNT, self._values(pipeline_id))

    def remove(self, pipeline_id: str) -> Repeated:
        """Remove a pipeline's expired progress, in short transactions."""

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, "Removing expired progress"):
                removed = query(self.conn, self.schema, _PROGRESS, self._values(pipeline_id)).rowcount
            return removed, removed == _MOST

        return repeat(step, _PAUSE_SECONDS)

    def _values(self, pipeline_id: str | None) -> dict[str, Any]:
        return {"pipeline_id": pipeline_id, "before": self.before, "most": _MOST, "kept": KEPT_PROGRESS}
