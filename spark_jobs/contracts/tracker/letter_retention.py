"""Removing dead letters that are settled, and replays that have ended. A letter that waits is never removed.

Letters first: a replay whose letters came home before it ended is then as old as they are, and goes with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from spark_jobs.contracts.cleanup import CleanupRequest
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.letters import compact_tally
from spark_jobs.contracts.tracker.prepared import prepared_names
from spark_jobs.contracts.tracker.short_deletes import BusyError, Problems, number, repeat, short_delete
from spark_jobs.contracts.tracker.staging_names import staging_prefix

log = logging.getLogger("etl.cleanup")

SETTLED: Final = ("replayed", "discarded")
"""The only letters that may go: they came home, or somebody gave them up by name."""

_PIPELINES: Final = """
SELECT DISTINCT pipeline_id FROM {schema}.dead_letter_tally
WHERE status = ANY (%(settled)s)
  AND (%(pipelines)s::text[] IS NULL OR pipeline_id = ANY (%(pipelines)s::text[]))
ORDER BY pipeline_id"""
# In the order of their index; where the last look ended, the next one begins: one that is settled later than it failed
# is passed by once a cleanup, not once a transaction.
_LOOK: Final = """
SELECT dead_letter_id, first_failed_at, coalesce(closed_at, last_failed_at) < %(before)s
FROM {schema}.dead_letter_single
WHERE status = %(status)s AND pipeline_id = %(pipeline_id)s AND first_failed_at < %(before)s
  AND (first_failed_at, dead_letter_id) > (%(after)s, %(after_id)s)
ORDER BY first_failed_at, dead_letter_id LIMIT %(most)s"""
_REMOVE: Final = """
DELETE FROM {schema}.dead_letter_single WHERE status = %(status)s AND dead_letter_id = ANY (ARRAY(
    SELECT dead_letter_id FROM {schema}.dead_letter_single
    WHERE status = %(status)s AND dead_letter_id = ANY (%(letters)s) FOR UPDATE SKIP LOCKED
))"""
_OLD_BUNDLES: Final = """
FROM {schema}.dead_letter_bundle
WHERE status = %(status)s AND pipeline_id = %(pipeline_id)s AND first_failed_at < %(before)s
  AND coalesce(closed_at, last_failed_at) < %(before)s"""
_COUNT_BUNDLED: Final = f"SELECT coalesce(sum(letters), 0)::bigint {_OLD_BUNDLES}"
# One bundle at a time, and of a large one as much as fits: what is left of it is a bundle still.
_NEXT_BUNDLE: Final = f"""
SELECT bundle_id {_OLD_BUNDLES} ORDER BY first_failed_at LIMIT 1 FOR UPDATE SKIP LOCKED"""
_REMOVE_BUNDLED: Final = """
WITH gone AS (
    DELETE FROM {schema}.dead_letter_bundled WHERE dead_letter_id = ANY (ARRAY(
        SELECT dead_letter_id FROM {schema}.dead_letter_bundled WHERE bundle_id = %(bundle_id)s LIMIT %(most)s
    )) RETURNING 1
), less AS (
    UPDATE {schema}.dead_letter_bundle SET letters = letters - (SELECT count(*) FROM gone)
    WHERE bundle_id = %(bundle_id)s AND letters > (SELECT count(*) FROM gone)
), empty AS (
    DELETE FROM {schema}.dead_letter_bundle
    WHERE bundle_id = %(bundle_id)s AND letters <= (SELECT count(*) FROM gone)
)
SELECT count(*) FROM gone"""

# A redrive that died between its records and its letters stays: its items say which letters may have been sent.
_REPLAYS: Final = """
SELECT r.replay_id, r.pipeline_id FROM {schema}.dead_letter_replay r
WHERE r.state <> 'open' AND r.ended_at < %(before)s
  AND (%(pipelines)s::text[] IS NULL OR r.pipeline_id = ANY (%(pipelines)s::text[]))
  AND NOT EXISTS (SELECT FROM {schema}.dead_letter_redrive m WHERE m.replay_id = r.replay_id)
  AND NOT EXISTS (SELECT FROM {schema}.dead_letter_replaying l WHERE l.replay_id = r.replay_id)
  AND NOT EXISTS (
    SELECT FROM {schema}.dead_letter_bundle b WHERE b.status = 'replaying' AND b.replay_id = r.replay_id
  )
  AND NOT EXISTS (
    SELECT FROM {schema}.pipeline_run run WHERE run.pipeline_id = r.pipeline_id || '/replay/' || r.replay_id
      AND greatest(run.registered_at, run.heartbeat_at, run.ended_at) >= %(before)s
  )
  AND NOT EXISTS (
    SELECT FROM {schema}.batch_decision d WHERE d.pipeline_id = r.pipeline_id || '/replay/' || r.replay_id
  )
  AND NOT EXISTS (
    SELECT FROM {schema}.batch_part p WHERE p.pipeline_id = r.pipeline_id || '/replay/' || r.replay_id
  )
ORDER BY r.ended_at"""
_LOCK_REPLAY: Final = """
SELECT FROM {schema}.dead_letter_replay WHERE replay_id = %(replay_id)s AND state <> 'open' FOR UPDATE SKIP LOCKED"""
_ITEMS: Final = """
DELETE FROM {schema}.dead_letter_replay_item WHERE replay_id = %(replay_id)s AND position = ANY (ARRAY(
    SELECT position FROM {schema}.dead_letter_replay_item WHERE replay_id = %(replay_id)s ORDER BY position
    LIMIT %(most)s
))"""
# What a replay has brought home stays in the books, under the pipeline whose letters they were.
_BATCHES: Final = """
WITH gone AS (
    DELETE FROM {schema}.batch_tracker WHERE pipeline_id = %(own)s AND (query_id, batch_id) IN (
        SELECT query_id, batch_id FROM {schema}.batch_tracker WHERE pipeline_id = %(own)s ORDER BY query_id, batch_id
        LIMIT %(most)s
    ) RETURNING batch_id, record_count, processed_at
), recorded AS (
    INSERT INTO {schema}.batch_retention AS r (
        pipeline_id, query_id, removed_through_batch, through_time, removed_batches, removed_rows
    )
    SELECT %(pipeline_id)s, %(replay_id)s::text, max(batch_id), max(processed_at), count(*), sum(record_count)
    FROM gone HAVING count(*) > 0
    ON CONFLICT (pipeline_id, query_id) DO UPDATE SET
        removed_through_batch = greatest(r.removed_through_batch, excluded.removed_through_batch),
        through_time = greatest(r.through_time, excluded.through_time),
        removed_batches = r.removed_batches + excluded.removed_batches,
        removed_rows = r.removed_rows + excluded.removed_rows,
        updated_at = clock_timestamp()
)
SELECT FROM gone"""
_LAST: Final = (
    "DELETE FROM {schema}.run_retry WHERE run_id IN "
    "(SELECT run_id FROM {schema}.pipeline_run WHERE pipeline_id = %(own)s)",
    "DELETE FROM {schema}.pipeline_query WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.pipeline_run WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.pipeline WHERE pipeline_id = %(own)s",
    "DELETE FROM {schema}.dead_letter_replay WHERE replay_id = %(replay_id)s",
)
_STAGING_LEFT: Final = """
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND starts_with(c.relname, %(prefix)s)"""


@dataclass(frozen=True, slots=True)
class LetterCleanup:
    """One pass over settled letters and ended replays.

    :param before: what was settled, or ended, before this time is old enough.
    """

    conn: Connection
    schema: str
    request: CleanupRequest
    before: datetime
    problems: Problems

    def letters(self) -> Iterator[tuple[str, int]]:
        """Remove, or count, letters that came home or were given up; pipeline and number."""
        values = {"settled": list(SETTLED), "pipelines": list(self.request.pipelines) or None}
        with classified("Looking for settled dead letters"):
            rows = query(self.conn, self.schema, _PIPELINES, values).fetchall()
        for (pipeline_id,) in rows:
            with self.problems.aside(pipeline_id):
                gone = sum(self._letters(pipeline_id, one) + self._bundled(pipeline_id, one) for one in SETTLED)
                if gone and not self.request.dry_run:
                    self._add_up(pipeline_id)
                yield pipeline_id, gone

    def replays(self) -> Iterator[tuple[str, int]]:
        """Remove, or count, replays with their runs, micro-batches and lists of letters; pipeline and number."""
        values = {"before": self.before, "pipelines": list(self.request.pipelines) or None}
        with classified("Looking for ended replays"):
            rows = query(self.conn, self.schema, _REPLAYS, values).fetchall()
        for replay_id, pipeline_id in rows:
            own = f"{pipeline_id}/replay/{replay_id}"
            with self.problems.aside(pipeline_id):
                if not self._left_something(own):
                    yield pipeline_id, 1 if self.request.dry_run else self._replay(replay_id, pipeline_id, own)

    def _add_up(self, pipeline_id: str) -> None:
        try:
            compact_tally(self.conn, self.schema, pipeline_id)
        except EtlError:
            # It only makes counting quicker; others may be at it.
            log.debug("The tally of dead letters could not be added up", exc_info=True)

    def _letters(self, pipeline_id: str, status: str) -> int:
        values: dict[str, Any] = {
            "pipeline_id": pipeline_id,
            "status": status,
            "before": self.before,
            "most": self.request.batch_size,
            "after": "-infinity",
            "after_id": UUID(int=0),
        }

        def step() -> tuple[int, bool]:
            with classified("Looking for settled dead letters"):
                looked = query(self.conn, self.schema, _LOOK, values).fetchall()
            old = [row[0] for row in looked if row[2]]
            removed = len(old) if self.request.dry_run else self._remove(status, old)
            if looked:
                values.update(after_id=looked[-1][0], after=looked[-1][1])
            return removed, len(looked) == self.request.batch_size

        done = repeat(step, 0 if self.request.dry_run else self.request.pause_seconds)
        return self.problems.removed(pipeline_id, done)

    def _bundled(self, pipeline_id: str, status: str) -> int:
        values: dict[str, Any] = {
            "pipeline_id": pipeline_id,
            "status": status,
            "before": self.before,
            "most": self.request.batch_size,
        }
        if self.request.dry_run:
            with classified("Counting settled dead letters"):
                return number(self.conn, self.schema, _COUNT_BUNDLED, values)

        def step() -> tuple[int, bool]:
            with short_delete(self.conn, "Removing settled dead letters"):
                chosen = query(self.conn, self.schema, _NEXT_BUNDLE, values).fetchone()
                if chosen is None:
                    return 0, False
                return number(self.conn, self.schema, _REMOVE_BUNDLED, {**values, "bundle_id": chosen[0]}), True

        return self.problems.removed(pipeline_id, repeat(step, self.request.pause_seconds))

    def _remove(self, status: str, letters: list[UUID]) -> int:
        if not letters:
            return 0
        with short_delete(self.conn, "Removing settled dead letters"):
            return query(self.conn, self.schema, _REMOVE, {"status": status, "letters": letters}).rowcount

    def _left_something(self, own: str) -> bool:
        """Tell whether a sweep must come first: afterwards nobody could tell whose the remains are."""
        values = {"schema": self.schema, "prefix": staging_prefix(own, self.schema)}
        with classified("Looking for what a replay left behind"):
            return bool(number(self.conn, self.schema, _STAGING_LEFT, values)) or bool(
                prepared_names(self.conn, self.schema, own)
            )

    def _replay(self, replay_id: UUID, pipeline_id: str, own: str) -> int:
        values = {"replay_id": replay_id, "pipeline_id": pipeline_id, "own": own, "most": self.request.batch_size}

        def remove(*statements: str) -> int:
            with short_delete(self.conn, "Removing an ended replay"):
                if not query(self.conn, self.schema, _LOCK_REPLAY, values).rowcount:
                    raise BusyError
                return [query(self.conn, self.schema, statement, values).rowcount for statement in statements][-1]

        def step(statement: str) -> tuple[int, bool]:
            removed = remove(statement)
            return removed, removed == self.request.batch_size

        def last() -> tuple[int, bool]:
            return remove(*_LAST), False

        for work in (partial(step, _ITEMS), partial(step, _BATCHES), last):
            done = repeat(work, self.request.pause_seconds)
            self.problems.removed(pipeline_id, done)
            if done.stopped:
                return 0
        return 1
