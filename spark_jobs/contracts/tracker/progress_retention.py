"""Removing progress that nobody keeps short any more.

Each run keeps its own pipeline's to a thousand; what expires is that of pipelines that nobody runs any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.short_deletes import number, repeat, short_delete

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

    def pipelines(self) -> Iterator[tuple[str, int]]:
        """Yield the pipelines with expired progress, and how much there is."""
        values = self._values(None)
        with classified("Looking for expired progress"):
            found = query(self.conn, self.schema, _WITH_PROGRESS, values).fetchall()
        for (pipeline_id,) in found:
            with classified("Counting expired progress"):
                expired = number(self.conn, self.schema, _COUNT, self._values(pipeline_id))
            if expired:
                yield pipeline_id, expired

    def remove(self, pipeline_id: str) -> int:
        """Remove a pipeline's expired progress, in short transactions; return how much went.

        :raises BusyError: others are at the rest.
        :raises EtlError: it cannot be removed.
        """

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, "Removing expired progress"):
                removed = query(self.conn, self.schema, _PROGRESS, self._values(pipeline_id)).rowcount
            return removed, removed == _MOST

        done = repeat(step, _PAUSE_SECONDS)
        if done.stopped is not None:
            raise done.stopped
        return done.removed

    def _values(self, pipeline_id: str | None) -> dict[str, Any]:
        return {"pipeline_id": pipeline_id, "before": self.before, "most": _MOST, "kept": KEPT_PROGRESS}
