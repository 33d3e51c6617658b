"""Names of files that old micro-batches have read: they outlive their batch while a resume may ask for them.

A batch may have read a million files. Their names go out of the way of its own removal first, some at a time: who asks
which files were read looks in both tables, and finds each name in one of them at any moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from spark_jobs.contracts.cleanup import CleanupRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.known_queries import known_queries, since_start
from spark_jobs.contracts.tracker.short_deletes import Problems, number, repeat, short_delete

# Of the oldest batch, if it is old enough and has more files than a transaction may have rows.
_MOVE: Final = """
WITH oldest AS MATERIALIZED (
    SELECT batch_id, processed_at FROM {schema}.batch_tracker
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= %(last)s
    ORDER BY batch_id LIMIT 1
), many AS MATERIALIZED (
    SELECT batch_id FROM oldest WHERE processed_at < %(before)s AND EXISTS (
        SELECT FROM {schema}.batch_file f
        WHERE f.pipeline_id = %(pipeline_id)s AND f.query_id = %(query_id)s AND f.batch_id = oldest.batch_id
        OFFSET %(most)s
    )
), gone AS (
    DELETE FROM {schema}.batch_file
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s AND batch_id = (SELECT batch_id FROM many)
      AND path = ANY (ARRAY(
        SELECT path FROM {schema}.batch_file
        WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s AND batch_id = (SELECT batch_id FROM many)
        ORDER BY path LIMIT %(most)s
      ))
    RETURNING pipeline_id, query_id, path, modified_at, size_bytes
), files AS (
    INSERT INTO {schema}.batch_file_retained AS kept (pipeline_id, query_id, path, modified_at, size_bytes)
    SELECT pipeline_id, query_id, path, modified_at, size_bytes FROM gone
    ON CONFLICT (pipeline_id, query_id, path) DO UPDATE SET
        modified_at = greatest(kept.modified_at, excluded.modified_at),
        size_bytes = greatest(kept.size_bytes, excluded.size_bytes)
)
SELECT count(*) FROM gone"""

_WITH_FILES: Final = """
SELECT pipeline_id, query_id FROM {schema}.batch_retention r
WHERE (%(pipelines)s::text[] IS NULL OR pipeline_id = ANY (%(pipelines)s::text[])) AND EXISTS (
    SELECT FROM {schema}.batch_file_retained f WHERE f.pipeline_id = r.pipeline_id AND f.query_id = r.query_id
)
ORDER BY pipeline_id, query_id"""
_OLD_FILES: Final = "FROM {schema}.batch_file_retained WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s"
_REMOVE: Final = f"""
WITH gone AS (
    DELETE FROM {{schema}}.batch_file_retained WHERE ctid = ANY (ARRAY(
        SELECT ctid {_OLD_FILES} ORDER BY path LIMIT %(most)s FOR UPDATE SKIP LOCKED
    )) RETURNING 1
), told AS (SELECT count(*) AS files FROM gone), recorded AS (
    UPDATE {{schema}}.batch_retention SET removed_files = removed_files + files, updated_at = clock_timestamp()
    FROM told WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s AND files > 0
)
SELECT files FROM told"""  # noqa: S608 - constants


def move_files(conn: Connection, schema: str, values: dict[str, Any]) -> int:
    """Move some names of the oldest batch that is to go, if it has too many to go with it; return how many.

    In the caller's transaction.

    :param values: ``pipeline_id``, ``query_id``, ``after`` and ``last`` (batches), ``before`` and ``most``.
    """
    return number(conn, schema, _MOVE, values)


@dataclass(frozen=True, slots=True)
class FileCleanup:
    """One pass over the names of files whose batches are gone."""

    conn: Connection
    schema: str
    request: CleanupRequest
    problems: Problems

    def files(self) -> Iterator[tuple[str, int]]:
        """Remove, or count, the names that no resume will ask for; pipeline and number.

        A resume from the ledger takes for read what all queries since the target's last start have read.
        """
        values = {"pipelines": list(self.request.pipelines) or None, "most": self.request.batch_size}
        with classified("Looking for files of removed micro-batches"):
            rows = query(self.conn, self.schema, _WITH_FILES, values).fetchall()
        for pipeline_id, query_id in rows:
            with self.problems.aside(pipeline_id):
                if self._may_go(pipeline_id, query_id):
                    yield pipeline_id, self._files({**values, "pipeline_id": pipeline_id, "query_id": query_id})

    def _may_go(self, pipeline_id: str, query_id: str) -> bool:
        known = known_queries(self.conn, self.schema, pipeline_id)
        return bool(known) and query_id not in {needed.query_id for needed in since_start(known)}

    def _files(self, values: dict[str, Any]) -> int:
        if self.request.dry_run:
            with classified("Counting files of removed micro-batches"):
                return number(self.conn, self.schema, f"SELECT count(*) {_OLD_FILES}", values)

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, "Removing files of removed micro-batches"):
                gone = number(self.conn, self.schema, _REMOVE, values)
            return gone, gone == self.request.batch_size

        return self.problems.removed(values["pipeline_id"], repeat(step, self.request.pause_seconds))
