"""Removing old micro-batches from the ledger, oldest first, and never one that a checkpoint could still run again.

What is removed of a query is always all of its batches up to one, which ``batch_retention`` names in the same
transaction. From then on :func:`~spark_jobs.contracts.tracker.statements.find_batch` answers ``removed`` for them: a
checkpoint that is older still stops its run, instead of loading them a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from psycopg.rows import class_row

from spark_jobs.contracts.cleanup import CleanupRequest, QueryCleanup
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.file_retention import move_files
from spark_jobs.contracts.tracker.short_deletes import BusyError, Problems, repeat, short_delete
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.cleanup")

# The queries one after the other, by the primary key: a DISTINCT would read the whole table. Replays go as a whole.
_QUERIES: Final = """
WITH RECURSIVE known AS (
    (SELECT pipeline_id, query_id FROM {schema}.batch_tracker ORDER BY pipeline_id, query_id LIMIT 1)
    UNION ALL
    SELECT next.pipeline_id, next.query_id FROM known CROSS JOIN LATERAL (
        SELECT pipeline_id, query_id FROM {schema}.batch_tracker b
        WHERE (b.pipeline_id, b.query_id) > (known.pipeline_id, known.query_id)
        ORDER BY b.pipeline_id, b.query_id LIMIT 1
    ) AS next
)
SELECT pipeline_id, query_id, last.batch_id AS last, EXISTS (
    SELECT FROM {schema}.batch_decision d WHERE d.pipeline_id = known.pipeline_id AND d.query_id = known.query_id
) OR EXISTS (
    SELECT FROM {schema}.batch_part p WHERE p.pipeline_id = known.pipeline_id AND p.query_id = known.query_id
) AS unfinished
FROM known CROSS JOIN LATERAL (
    SELECT processed_at FROM {schema}.batch_tracker b
    WHERE b.pipeline_id = known.pipeline_id AND b.query_id = known.query_id ORDER BY b.batch_id LIMIT 1
) AS oldest CROSS JOIN LATERAL (
    SELECT batch_id FROM {schema}.batch_tracker b
    WHERE b.pipeline_id = known.pipeline_id AND b.query_id = known.query_id AND oldest.processed_at < %(before)s
    ORDER BY b.batch_id DESC OFFSET %(keep)s LIMIT 1
) AS last
WHERE strpos(pipeline_id, '/replay/') = 0
  AND (%(pipelines)s::text[] IS NULL OR pipeline_id = ANY (%(pipelines)s::text[]))
ORDER BY pipeline_id, query_id"""

# By clock alone a batch could be older than its predecessor: the first one that is too young ends what goes. So does
# one with which there would be more files than a transaction may have rows; of the first one, they have gone before.
_OLD: Final = """
chunk AS MATERIALIZED (
    SELECT batch_id, processed_at FROM {schema}.batch_tracker
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= %(last)s
    ORDER BY batch_id LIMIT %(most)s
), too_many_files AS MATERIALIZED (
    SELECT batch_id FROM {schema}.batch_file
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= %(last)s
    ORDER BY batch_id, path OFFSET %(most)s LIMIT 1
), through AS MATERIALIZED (
    SELECT least(
        coalesce(min(batch_id) FILTER (WHERE processed_at >= %(before)s) - 1, max(batch_id)),
        (SELECT greatest(f.batch_id - 1, (SELECT min(batch_id) FROM chunk)) FROM too_many_files f)
    ) AS batch_id
    FROM chunk
), old AS MATERIALIZED (
    SELECT batch_id, record_count, end_offsets FROM {schema}.batch_tracker
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= (SELECT batch_id FROM through)
)"""
_COUNT: Final = f"""
WITH {_OLD} SELECT count(*), coalesce(sum(record_count), 0)::bigint, max(batch_id) FROM old"""  # noqa: S608 - constants
_REMOVE: Final = f"""
WITH {_OLD}, files AS (
    INSERT INTO {{schema}}.batch_file_retained AS kept (pipeline_id, query_id, path, modified_at, size_bytes)
    SELECT pipeline_id, query_id, path, max(modified_at), max(size_bytes) FROM {{schema}}.batch_file
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= (SELECT batch_id FROM through)
    GROUP BY 1, 2, 3
    ON CONFLICT (pipeline_id, query_id, path) DO UPDATE SET
        modified_at = greatest(kept.modified_at, excluded.modified_at), size_bytes = excluded.size_bytes
), gone AS (
    DELETE FROM {{schema}}.batch_tracker
    WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
      AND batch_id > %(after)s AND batch_id <= (SELECT batch_id FROM through)
    RETURNING batch_id, record_count, processed_at
), told AS (
    SELECT count(*) AS batches, coalesce(sum(record_count), 0)::bigint AS rows, max(batch_id) AS batch_id,
           max(processed_at) AS through_time
    FROM gone
), recorded AS (
    INSERT INTO {{schema}}.batch_retention AS r (
        pipeline_id, query_id, removed_through_batch, end_offsets, through_time, removed_batches, removed_rows
    )
    SELECT %(pipeline_id)s, %(query_id)s, batch_id, (SELECT end_offsets FROM old WHERE old.batch_id = told.batch_id),
           through_time, batches, rows
    FROM told WHERE batches > 0
    ON CONFLICT (pipeline_id, query_id) DO UPDATE SET
        end_offsets = CASE WHEN excluded.removed_through_batch >= r.removed_through_batch
            THEN excluded.end_offsets ELSE r.end_offsets END,
        removed_through_batch = greatest(r.removed_through_batch, excluded.removed_through_batch),
        through_time = greatest(r.through_time, excluded.through_time),
        removed_batches = r.removed_batches + excluded.removed_batches,
        removed_rows = r.removed_rows + excluded.removed_rows,
        updated_at = clock_timestamp()
)
SELECT batches, rows, batch_id FROM told"""  # noqa: S608 - constants
# In a statement before: what another cleanup has removed while it was waited for is then seen.
_MAY_REMOVE: Final = """
SELECT pg_try_advisory_xact_lock(hashtextextended(%(lock)s, 4543556)), NOT EXISTS (
    SELECT FROM {schema}.batch_decision WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
) AND NOT EXISTS (
    SELECT FROM {schema}.batch_part WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s
)"""
_KEPT_FROM: Final = """
SELECT batch_id, processed_at FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline_id)s AND query_id = %(query_id)s AND batch_id > %(after)s ORDER BY batch_id LIMIT 1"""


@dataclass(frozen=True, slots=True)
class OldQuery:
    """A query with old batches.

    :param last: the newest batch that may go by number. :param unfinished: a decided batch waits for its end.
    """

    pipeline_id: str
    query_id: str
    last: int
    unfinished: bool


@dataclass(slots=True)
class BatchCleanup:
    """One pass over the batches of all queries.

    :param before: batches committed before this time are old enough.
    """

    conn: Connection
    schema: str
    request: CleanupRequest
    before: datetime
    problems: Problems
    _after: int = field(default=-1, init=False)

    def batches(self) -> Iterator[QueryCleanup]:
        """Remove, or count, what is old; one result for each query that has old batches, as soon as it is done."""
        for one in self.old_queries():
            done = QueryCleanup(pipeline_id=one.pipeline_id, query_id=one.query_id, why="failed")
            with self.problems.aside(one.pipeline_id):
                done = self._query(one)
            yield done

    def old_queries(self) -> list[OldQuery]:
        """Return the queries that have batches which are old and not among the newest."""
        with classified("Looking for old micro-batches"):
            cursor = query(self.conn, self.schema, _QUERIES, self._values(), row_factory=class_row(OldQuery))
            return cursor.fetchall()

    def _query(self, one: OldQuery) -> QueryCleanup:
        done = QueryCleanup(pipeline_id=one.pipeline_id, query_id=one.query_id, why="unfinished")
        if one.unfinished:
            return self._told(done)
        values = {**self._values(), "pipeline_id": one.pipeline_id, "query_id": one.query_id, "last": one.last}
        self._after = -1

        def step() -> tuple[int, bool]:
            nonlocal done
            batches, rows, through, files = self._chunk({**values, "after": self._after})
            if not batches:
                return files, files > 0
            self._after = through
            done = done.model_copy(
                update={"batches": done.batches + batches, "rows": done.rows + rows, "through_batch": through}
            )
            return batches, through < one.last

        stopped = repeat(step, 0 if self.request.dry_run else self.request.pause_seconds).stopped
        if isinstance(stopped, EtlError):
            self.problems.add(one.pipeline_id, stopped)
            return self._told(done.model_copy(update={"why": "failed"}))
        if stopped is not None:
            return self._told(done.model_copy(update={"why": "unfinished" if stopped.args else "busy"}))
        return self._told(self._kept(done, {**values, "after": self._after}))

    def _chunk(self, values: dict[str, Any]) -> tuple[int, int, int, int]:
        """Do one transaction; return batches, their target rows, the last of them; or files, where they come first."""
        if self.request.dry_run:
            with classified("Counting old micro-batches"):
                return *(query(self.conn, self.schema, _COUNT, values).fetchone() or (0, 0, 0)), 0
        with short_delete(self.conn, "Removing old micro-batches"):
            lock = f"{self.schema}/{values['pipeline_id']}/{values['query_id']}"
            mine, finished = query(self.conn, self.schema, _MAY_REMOVE, {**values, "lock": lock}).fetchone() or (0, 0)
            if not mine:
                raise BusyError
            if not finished:
                raise BusyError("unfinished")
            if files := move_files(self.conn, self.schema, values):
                return 0, 0, 0, files
            return *(query(self.conn, self.schema, _REMOVE, values).fetchone() or (0, 0, 0)), 0

    def _kept(self, done: QueryCleanup, values: dict[str, Any]) -> QueryCleanup:
        with classified("Looking at what stays"):
            row = query(self.conn, self.schema, _KEPT_FROM, values).fetchone()
        first, since = row or (None, None)
        why = "age" if since is not None and since >= self.before else "count"
        return done.model_copy(update={"kept_from_batch": first, "kept_since": since, "why": why})

    def _told(self, done: QueryCleanup) -> QueryCleanup:
        fields = done.model_dump(include={"pipeline_id", "query_id", "batches", "through_batch", "why"})
        event = "old_batches_counted" if self.request.dry_run else "old_batches_removed"
        log_event(log, logging.INFO, event, **{"pipeline": fields.pop("pipeline_id"), **fields})
        return done

    def _values(self) -> dict[str, Any]:
        return {
            "pipelines": list(self.request.pipelines) or None,
            "before": self.before,
            "keep": self.request.keep_batches,
            "most": self.request.batch_size,
        }
