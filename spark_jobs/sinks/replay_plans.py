"""Plans of a replay's micro-batches: dead letters are not added, those that failed again are given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from psycopg import sql

from spark_jobs.contracts.replay import ReplayRequest
from spark_jobs.contracts.tracker.connect import Connection, classified
from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.sinks.committing import CommitPlan
from spark_jobs.sinks.dead_letter_rows import LETTER_COLUMNS
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.settling import Settling
from spark_jobs.sinks.staging import Staged

_SAMPLES = 20

# The parameters are those of any statement that stores letters; the batch's key is not asked for here.
_AGAIN = """
WITH batch AS (SELECT $1::text, $2::text, $3::bigint)
UPDATE {schema}.dead_letter d SET stage = l.stage, error_class = l.error_class, sqlstate = l.sqlstate,
    message = l.message, column_name = l.column_name, constraint_name = l.constraint_name,
    parsed_row = coalesce(l.parsed_row::jsonb, d.parsed_row), attempt = d.attempt + 1,
    last_failed_at = clock_timestamp(), status = CASE WHEN d.attempt + 1 >= {most} THEN 'parked' ELSE 'pending' END
FROM json_array_elements_text($4::json) AS letter(envelope),
    json_to_record(letter.envelope::json) AS l(dead_letter_id text, {columns})
WHERE d.dead_letter_id = coalesce(l.dead_letter_id, l.source::jsonb ->> 'dead_letter_id')::uuid
  AND d.status = 'replaying' AND d.replay_id = {replay}"""
_TAKE = """
UPDATE {schema}.dead_letter d SET status = 'replaying', replay_id = i.replay_id
FROM {schema}.dead_letter_replay_item i
WHERE {mine} AND d.dead_letter_id = i.dead_letter_id AND d.status = i.status_before"""
_HOME = """
WITH home AS (
    UPDATE {schema}.dead_letter d SET status = 'replayed', home_query_id = {query}, home_batch_id = {batch},
        closed_at = clock_timestamp()
    FROM {schema}.dead_letter_replay_item i
    WHERE {mine} AND d.dead_letter_id = i.dead_letter_id AND d.status = 'replaying' AND d.replay_id = i.replay_id
    RETURNING 1
)
SELECT count(*) FROM home"""
_OUTCOME = """
WITH letter AS (
    SELECT i.position, d.dead_letter_id, i.stage, i.error_class, d.status, d.stage AS new_stage,
        d.error_class AS new_error_class, d.message AS new_message
    FROM {schema}.dead_letter_replay_item i JOIN {schema}.dead_letter d USING (dead_letter_id) WHERE {mine}
)
SELECT json_build_object(
    'classes', (SELECT coalesce(json_agg(c), '[]') FROM (
        SELECT stage, error_class, count(*) AS taken, count(*) FILTER (WHERE status = 'replayed') AS replayed,
            count(*) FILTER (WHERE status = 'pending') AS failed, count(*) FILTER (WHERE status = 'parked') AS parked
        FROM letter GROUP BY 1, 2
    ) AS c),
    'samples', (SELECT coalesce(json_agg(s), '[]') FROM (
        SELECT dead_letter_id, stage, error_class, new_stage, new_error_class, left(new_message, 500) AS new_message
        FROM letter WHERE status IN ('pending', 'parked') ORDER BY position LIMIT {samples}
    ) AS s)
)::text"""

_UNMARK = """
DELETE FROM {schema}.dead_letter_redrive m USING {schema}.dead_letter_replay_item theirs,
    {schema}.dead_letter_replay_item i
WHERE {mine} AND theirs.dead_letter_id = i.dead_letter_id AND m.replay_id = theirs.replay_id
    AND theirs.position > m.first_position AND theirs.position <= m.last_position
    AND NOT EXISTS (
        SELECT FROM {schema}.dead_letter_replay_item other JOIN {schema}.dead_letter d USING (dead_letter_id)
        WHERE other.replay_id = m.replay_id AND other.position > m.first_position
            AND other.position <= m.last_position AND d.status <> 'replayed'
    )"""


@dataclass(frozen=True, slots=True)
class ReplayPlans(Plans):
    """Makes the plans of one replay's micro-batches; they are of the strategy ``single``.

    :param replay_id: whose letters they are. :param max_attempts: failures after which a letter is parked.
    :param dry_run: whether everything is rolled back at the end.
    """

    replay_id: UUID = field(default_factory=uuid4)
    max_attempts: int = 1
    dry_run: bool = False

    def commit(
        self, record: BatchRecord, event: dict[str, Any], where: str, *staged: Staged | None, hands_over: bool = False
    ) -> CommitPlan:
        """Return the plan of a transaction's end, which settles the letters of the batch's positions."""
        plan = Plans.commit(self, record, event, where, *staged, hands_over=hands_over)
        return replace(plan, letters=self._text(_AGAIN), settling=self.settling(record))

    def settling(self, record: BatchRecord) -> Settling:
        """Return what becomes of the letters whose positions are the batch's offsets."""
        return _settling(self.ledger, self.replay_id, record, dry_run=self.dry_run)

    def _text(self, statement: str) -> str:
        return _rendered(statement, self.ledger, self.replay_id, most=self.max_attempts)


def redrive_settling(ledger: Ledger, request: ReplayRequest, record: BatchRecord) -> Settling:
    """Return what becomes of letters whose records were sent: all of them come home, and the mark goes."""
    settling = _settling(ledger, request.replay_id, record, dry_run=request.dry_run)
    unmark = _rendered(_UNMARK, ledger, request.replay_id, record=record)
    return settling if request.dry_run else replace(settling, unmark=unmark)


def _settling(ledger: Ledger, replay_id: UUID, record: BatchRecord, *, dry_run: bool) -> Settling:
    first, last = (int(offsets["position"]) for offsets in _bounds(record))
    take, home, outcome = (_rendered(text, ledger, replay_id, record=record) for text in (_TAKE, _HOME, _OUTCOME))
    return Settling(last - first, take, home, outcome, dry_run)


def _rendered(
    statement: str, ledger: Ledger, replay_id: UUID, *, most: int = 0, record: BatchRecord | None = None
) -> str:
    first, last = (int(offsets["position"]) for offsets in _bounds(record)) if record else (0, 0)
    mine = sql.SQL("i.replay_id = {} AND i.position > {} AND i.position <= {}").format(
        sql.Literal(replay_id), sql.Literal(first), sql.Literal(last)
    )
    return (
        sql.SQL(statement)
        .format(
            schema=sql.SQL(ledger.ident),
            columns=sql.SQL(LETTER_COLUMNS),
            most=sql.Literal(most),
            replay=sql.Literal(replay_id),
            mine=mine,
            samples=sql.Literal(_SAMPLES),
            query=sql.Literal(record.identity.query_id if record else ""),
            batch=sql.Literal(record.identity.batch_id if record else 0),
        )
        .as_string(ledger.connection())
    )


def _bounds(record: BatchRecord) -> tuple[Any, Any]:
    return record.identity.start_offsets, record.identity.end_offsets


def letters_query(conn: Connection, schema: str, replay_id: UUID, first: int, last: int, condition: str) -> str:
    """Return the question for the letters of a replay whose positions are above ``first``, up to ``last``.

    :param condition: SQL over the letters ``d`` and what they were ``i``.
    """
    columns = (
        "d.dead_letter_id::text AS __letter_id, i.stage, i.error_class, d.message, d.raw_key, d.raw_value, "
        "d.raw_headers::text AS raw_headers, d.parsed_row::text AS parsed_row, d.source::text AS source, d.attempt"
    )
    return _of_positions(columns, condition, " ORDER BY i.position", schema, replay_id, first, last).as_string(conn)


def count_letters_of(conn: Connection, schema: str, replay_id: UUID, first: int, last: int, condition: str) -> int:
    """Return how many of these letters there are."""
    with classified("Looking at the letters of a replay"):
        row = conn.execute(_of_positions("count(*)", condition, "", schema, replay_id, first, last)).fetchone()
    return int(row[0]) if row else 0


def _of_positions(
    columns: str, condition: str, order: str, schema: str, replay_id: UUID, first: int, last: int
) -> sql.Composed:
    return sql.SQL(
        f"SELECT {columns} FROM {{schema}}.dead_letter_replay_item i "  # noqa: S608 - constants of this package
        "JOIN {schema}.dead_letter d USING (dead_letter_id) "
        f"WHERE i.replay_id = {{replay}} AND i.position > {{first}} AND i.position <= {{last}} AND ({condition}){order}"
    ).format(
        schema=sql.Identifier(schema), replay=sql.Literal(replay_id), first=sql.Literal(first), last=sql.Literal(last)
    )
