"""Taking letters for a replay, in one transaction: bundles whole where all of each is meant, and apart elsewhere.

A letter belongs to at most one replay: taking it is an update of its own row, or of its bundle's. Each gets a place in
the replay's order, a bundle a range of places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg.types.json import Jsonb

from spark_jobs.contracts.replay import ReplayMode, ReplayRequest
from spark_jobs.contracts.tracker.bundles import of_bundles, single_out, take_apart
from spark_jobs.contracts.tracker.connect import Connection, query
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.letter_filters import conditions

# By ids in an array, never by a join: a planner that knows nothing yet of so many rows would compare each with each.
_TAKE: Final = """
WITH chosen AS (
    SELECT dead_letter_id FROM {schema}.dead_letter_single WHERE SINGLES
    ORDER BY first_failed_at, dead_letter_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), single AS (
    UPDATE {schema}.dead_letter_single SET status = 'replaying', status_before = status, replay_id = %(replay_id)s
    WHERE status = ANY (%(waiting)s) AND dead_letter_id = ANY (ARRAY(SELECT dead_letter_id FROM chosen))
    RETURNING dead_letter_id, first_failed_at, stage, error_class, raw_value IS NOT NULL AS has_raw_value
), bundle AS (
    UPDATE {schema}.dead_letter_bundle SET status = 'replaying', status_before = status, replay_id = %(replay_id)s
    WHERE %(whole)s AND status = ANY (%(waiting)s) AND bundle_id = ANY (ARRAY(
        SELECT bundle_id FROM {schema}.dead_letter_bundle WHERE BUNDLES FOR UPDATE SKIP LOCKED
    ))
    RETURNING bundle_id, first_failed_at, stage, error_class, has_raw_value, letters
), taken AS (
    SELECT dead_letter_id AS id, first_failed_at, stage, error_class, has_raw_value, 1 AS letters, false AS whole
    FROM single UNION ALL SELECT *, true FROM bundle
)"""
# A dry run takes nothing away: it looks at each letter where it is.
_LOOK: Final = """
WITH taken AS (
    SELECT dead_letter_id AS id, first_failed_at, stage, error_class, raw_value IS NOT NULL AS has_raw_value,
        1 AS letters, false AS whole
    FROM {schema}.dead_letter WHERE SINGLES ORDER BY first_failed_at, dead_letter_id LIMIT %(limit)s
)"""
_NUMBER: Final = """, placed AS (
    SELECT *, %(first)s + sum(letters) OVER (ORDER BY first_failed_at, id)::bigint AS position FROM taken
), item AS (
    INSERT INTO {schema}.dead_letter_replay_item (
        replay_id, position, dead_letter_id, stage, error_class, has_raw_value
    )
    SELECT %(replay_id)s, position, id, stage, error_class, has_raw_value FROM placed WHERE NOT whole
), held AS (
    INSERT INTO {schema}.dead_letter_replay_bundle (
        replay_id, first_position, last_position, bundle_id, stage, error_class, has_raw_value
    )
    SELECT %(replay_id)s, position - letters, position, id, stage, error_class, has_raw_value FROM placed WHERE whole
)
SELECT coalesce(sum(letters), 0)::bigint, coalesce(
    json_agg(json_build_array(position - letters, position) ORDER BY position) FILTER (WHERE whole), '[]'
) FROM placed"""
# What a bundle has too many letters for, or letters that are not meant.
_TOO_LARGE: Final = "letters > %(per_batch)s"
_WITHIN_LIMIT: Final = """
bundle_id IN (
    SELECT bundle_id FROM (
        SELECT bundle_id, sum(letters) OVER (ORDER BY first_failed_at, bundle_id) - letters AS before
        FROM {schema}.dead_letter_bundle WHERE BUNDLES
    ) AS oldest WHERE before < %(limit)s
)"""
_APART: Final = """
status = ANY (%(waiting)s) AND bundle_id = ANY (ARRAY(
    SELECT bundle_id FROM {schema}.dead_letter_bundle WHERE BUNDLES AND WHICH FOR UPDATE SKIP LOCKED
))"""
SENDABLE: Final = "raw_value IS NOT NULL AND source ? 'topic'"
"""Letters that hold a record, and know the topic that a redrive sends it back to."""
_UNSENDABLE: Final = f"SELECT count(*) FROM {{schema}}.dead_letter WHERE SINGLES AND NOT ({SENDABLE})"  # noqa: S608
_OPEN: Final = """
INSERT INTO {schema}.dead_letter_replay (replay_id, pipeline_id, mode, dry_run, request, requested_by, letters)
VALUES (%(replay_id)s, %(pipeline_id)s, %(mode)s, %(dry_run)s, %(request)s, %(by)s, 0)
ON CONFLICT (replay_id) DO UPDATE SET state = 'open', ended_at = NULL RETURNING letters"""
_BATCHES: Final = """
SELECT coalesce(max(batch_id) + 1, 0) FROM {schema}.batch_tracker WHERE pipeline_id = %s AND query_id = %s"""
# What failed as often as it may waits for a person.
_PARK: Final = """
WITH whole AS (
    UPDATE {schema}.dead_letter_bundle SET status = 'parked'
    WHERE BUNDLES AND status = 'pending' AND attempt >= %(most)s RETURNING letters
), single AS (
    UPDATE {schema}.dead_letter_single SET status = 'parked'
    WHERE SINGLES AND status = 'pending' AND attempt >= %(most)s RETURNING 1
)
SELECT (SELECT count(*) FROM single) + (SELECT coalesce(sum(letters), 0) FROM whole)"""
# Sent to their topic by a redrive that did not live to say so: only another redrive can tell.
PERHAPS_SENT: Final = """
dead_letter_id IN (
    SELECT theirs.dead_letter_id FROM {schema}.dead_letter_redrive m JOIN {schema}.dead_letter_replay_item theirs
        ON theirs.replay_id = m.replay_id AND theirs.position > m.first_position AND theirs.position <= m.last_position
)"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an attempt at a replay took.

    :param letters: how many. :param first: their positions are above this one, without holes.
    :param batches: how many micro-batches earlier attempts have committed.
    :param released: how many letters it had to free from replays whose drivers are gone.
    :param parked: how many had failed as often as they may.
    :param ends: the last positions of the micro-batches to come.
    :param unsendable: how many a redrive left where they are, for they hold no record that could be sent.
    """

    letters: int
    first: int
    batches: int
    released: int
    parked: int
    ends: tuple[int, ...]
    unsendable: int

    @property
    def last(self) -> int:
        """The last letter's position."""
        return self.first + self.letters


@dataclass(frozen=True, slots=True)
class Taking:
    """One transaction that takes letters for a request.

    :param run_id: the replay's run, with ``epoch``. :param released: how many letters were freed for it before.
    """

    conn: Connection
    schema: str
    request: ReplayRequest
    run_id: str
    epoch: int
    released: int

    def run(self) -> Taken:
        """Take them; in the caller's transaction.

        :raises FencedError: a newer run of the replay exists.
        """
        request, values = self.request, self._values()
        # What a redrive has perhaps sent is looked up in memory only where the planner believes that it fits.
        self._query("SET LOCAL work_mem = '256MB'")
        opened = self._query(_OPEN, values).fetchone()
        values["first"] = first = int(opened[0]) if opened else 0
        batches = self._query(_BATCHES, (request.own_pipeline_id, str(request.replay_id))).fetchone()
        parked = 0 if request.dry_run else self._prepare(values)
        taken = self._query(self._of(_LOOK if request.dry_run else _TAKE) + _NUMBER, values).fetchone()
        letters, bundles = (int(taken[0]), list(taken[1])) if taken else (0, [])
        values["letters"] = first + letters
        self._query(
            "UPDATE {schema}.dead_letter_replay SET letters = %(letters)s WHERE replay_id = %(replay_id)s", values
        )
        check_fence(self.conn, self.schema, request.own_pipeline_id, self.run_id, self.epoch, lock=True)
        return Taken(
            letters,
            first,
            int(batches[0]) if batches else 0,
            self.released,
            parked,
            _ends(first, first + letters, request.letters_per_batch, bundles),
            self._unsendable(values) if self._leaves_unsendable else 0,
        )

    def _prepare(self, values: dict[str, Any]) -> int:
        """Take bundles apart of which not all letters go the same way, and park what failed as often as it may."""
        single_out(self.conn, self.schema, self.request.letters)
        which = "true"
        if self._whole:
            which = _TOO_LARGE
        elif self.request.limit is not None:
            which = _WITHIN_LIMIT
        if self._whole or not self.request.letters.ids:
            take_apart(self.conn, self.schema, self._of(_APART.replace("WHICH", which)), values)
        row = self._query(self._of(_PARK), values).fetchone()
        return int(row[0]) if row else 0

    @property
    def _whole(self) -> bool:
        # A redrive remembers of each letter whether it was perhaps sent.
        request = self.request
        return request.mode is ReplayMode.REPROCESS and request.limit is None and not request.letters.ids

    @property
    def _leaves_unsendable(self) -> bool:
        # Who names letters by their ids means these.
        return self.request.mode is ReplayMode.REDRIVE and not self.request.letters.ids

    def _unsendable(self, values: dict[str, Any]) -> int:
        question = _UNSENDABLE.replace("SINGLES", conditions(self.request.letters)[0])
        row = self._query(question, values).fetchone()
        return int(row[0]) if row else 0

    def _of(self, statement: str) -> str:
        singles, bundles = conditions(self.request.letters)[0], of_bundles(self.request.letters)[0]
        if self.request.mode is ReplayMode.REPROCESS:
            singles += f" AND NOT {PERHAPS_SENT}"
        elif self._leaves_unsendable:
            singles += f" AND {SENDABLE}"
            bundles += " AND has_raw_value"
        return statement.replace("SINGLES", singles).replace("BUNDLES", bundles)

    def _values(self) -> dict[str, Any]:
        request = self.request
        return {
            **conditions(request.letters)[1],
            "replay_id": request.replay_id,
            "pipeline_id": request.letters.pipeline_id,
            "mode": request.mode.value,
            "dry_run": request.dry_run,
            "request": Jsonb(request.model_dump(mode="json")),
            "by": self.run_id,
            "limit": request.limit,
            "per_batch": request.letters_per_batch,
            "most": request.max_attempts,
            "waiting": list(request.letters.statuses),
            "whole": self._whole,
        }

    def _query(self, statement: str, values: Any = None) -> Any:
        return query(self.conn, self.schema, statement, values)


def _ends(first: int, last: int, most: int, bundles: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the last positions of the micro-batches: as many letters as may be, and no bundle in two of them.

    :param bundles: the positions before each one's first letter, and of its last, in their order; none has more letters
        than ``most``.
    """
    starts = [start for start, _ in bundles]
    ends: list[int] = []
    while first < last:
        end = min(first + most, last)
        across = bisect_left(starts, end) - 1
        if across >= 0 and bundles[across][1] > end:
            end = starts[across]
        ends.append(end)
        first = end
    return tuple(ends)
