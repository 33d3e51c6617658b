"""Plans of a replay's micro-batches: dead letters are not added, those that failed again are given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import sql

from spark_jobs.contracts.replay import ReplayRequest
from spark_jobs.contracts.tracker.connect import classified
from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.sinks.committing import CommitPlan
from spark_jobs.sinks.dead_letter_rows import LETTER_COLUMNS
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.settling import Settling
from spark_jobs.sinks.staging import Staged

_SAMPLES = 20

LETTER_VALUES: Final = {
    "stage": "i.stage",
    "error_class": "i.error_class",
    "message": "d.message",
    "raw_key": "d.raw_key",
    "raw_value": "d.raw_value",
    "raw_headers": "d.raw_headers::text",
    "parsed_row": "d.parsed_row::text",
    "source": "d.source::text",
    "attempt": "d.attempt",
}
"""What a replay may read of a letter, by name: SQL over the letter ``d`` and what it was when it was taken, ``i``."""

# The letters of the batch's positions, by ids in an array, or each looked up by its id. Never by a join that the
# planner may turn round: the tables may be so new that it knows nothing of them, and it would compare each with each.
_MINE = """
dead_letter_id = ANY (ARRAY(SELECT i.dead_letter_id FROM {schema}.dead_letter_replay_item i WHERE {mine}))"""
# The parameters are those of any statement that stores letters; the batch's key is not asked for here.
_AGAIN = """
WITH batch AS (SELECT $1::text, $2::text, $3::bigint), again AS MATERIALIZED (
    SELECT coalesce(l.dead_letter_id, l.source::jsonb ->> 'dead_letter_id')::uuid AS id, l.*
    FROM json_array_elements_text($4::json) AS letter(envelope),
        json_to_record(letter.envelope::json) AS l(dead_letter_id text, {columns})
)
UPDATE {schema}.dead_letter d SET stage = l.stage, error_class = l.error_class, sqlstate = l.sqlstate,
    message = l.message, column_name = l.column_name, constraint_name = l.constraint_name,
    parsed_row = coalesce(l.parsed_row::jsonb, d.parsed_row), attempt = d.attempt + 1, status_before = NULL,
    last_failed_at = clock_timestamp(), status = CASE WHEN d.attempt + 1 >= {most} THEN 'parked' ELSE 'pending' END
FROM again AS l
WHERE d.status = 'replaying' AND d.dead_letter_id = ANY (ARRAY(SELECT id FROM again)) AND d.dead_letter_id = l.id
  AND d.replay_id = {replay}"""
_TAKE = f"""
UPDATE {{schema}}.dead_letter SET status = 'replaying', status_before = status, replay_id = {{replay}}
WHERE status IN ('pending', 'parked') AND {_MINE}"""  # noqa: S608 - constants of this module
_HOME = f"""
WITH home AS (
    UPDATE {{schema}}.dead_letter SET status = 'replayed', status_before = NULL, home_query_id = {{query}},
        home_batch_id = {{batch}}, closed_at = clock_timestamp()
    WHERE status = 'replaying' AND replay_id = {{replay}} AND {_MINE}
    RETURNING 1
)
SELECT count(*) FROM home"""  # noqa: S608 - constants of this module
_OUTCOME = """
WITH letter AS (
    SELECT i.position, i.dead_letter_id, i.stage, i.error_class, d.status, d.stage AS new_stage,
        d.error_class AS new_error_class, d.message AS new_message
    FROM {schema}.dead_letter_replay_item i, LATERAL (
        SELECT d.status, d.stage, d.error_class, d.message FROM {schema}.dead_letter d
        WHERE d.dead_letter_id = i.dead_letter_id AND d.status IN ('replayed', 'pending', 'parked') OFFSET 0
    ) AS d WHERE {mine}
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

# The same for a micro-batch that came home as a whole.
_ALL_HOME = """
SELECT json_build_object('classes', coalesce(json_agg(c), '[]'), 'samples', '[]'::json)::text FROM (
    SELECT stage, error_class, count(*) AS taken, count(*) AS replayed
    FROM {schema}.dead_letter_replay_item i WHERE {mine} GROUP BY 1, 2
) AS c"""

# Marks of this pipeline's redrives whose letters are all home, or given up.
_UNMARK = """
DELETE FROM {schema}.dead_letter_redrive m USING {schema}.dead_letter_replay r
WHERE r.replay_id = m.replay_id
  AND r.pipeline_id = (SELECT pipeline_id FROM {schema}.dead_letter_replay WHERE replay_id = {replay})
  AND NOT EXISTS (
    SELECT FROM {schema}.dead_letter_replay_item i, LATERAL (
        SELECT FROM {schema}.dead_letter d
        WHERE d.dead_letter_id = i.dead_letter_id AND d.status NOT IN ('replayed', 'discarded') OFFSET 0
    ) AS not_home
    WHERE i.replay_id = m.replay_id AND i.position > m.first_position AND i.position <= m.last_position
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


def positions(record: BatchRecord) -> tuple[int, int]:
    """Return the batch's offsets: its letters' positions are above the first, up to the last."""
    key = record.identity
    return int(key.start_offsets["position"]), int(key.end_offsets["position"])


def _settling(ledger: Ledger, replay_id: UUID, record: BatchRecord, *, dry_run: bool) -> Settling:
    first, last = positions(record)
    take, home, all_home, outcome = (
        _rendered(text, ledger, replay_id, record=record) for text in (_TAKE, _HOME, _ALL_HOME, _OUTCOME)
    )
    return Settling(last - first, take, home, all_home, outcome, dry_run)


def _rendered(
    statement: str, ledger: Ledger, replay_id: UUID, *, most: int = 0, record: BatchRecord | None = None
) -> str:
    schema = sql.SQL(ledger.ident)
    first, last = positions(record) if record else (0, 0)
    return (
        sql.SQL(statement)
        .format(
            schema=schema,
            columns=sql.SQL(LETTER_COLUMNS),
            most=sql.Literal(most),
            replay=sql.Literal(replay_id),
            mine=_mine(replay_id, first, last),
            samples=sql.Literal(_SAMPLES),
            query=sql.Literal(record.identity.query_id if record else ""),
            batch=sql.Literal(record.identity.batch_id if record else 0),
        )
        .as_string(ledger.connection())
    )


def letters_query(
    ledger: Ledger,
    request: ReplayRequest,
    first: int,
    last: int,
    *,
    columns: Sequence[str] = tuple(LETTER_VALUES),
    condition: str = "true",
) -> str:
    """Return the question for the letters of a replay whose positions are above ``first``, up to ``last``.

    :param columns: of :data:`LETTER_VALUES`; they follow the letter's id in their own order.
    :param condition: SQL over what the letters were when they were taken, ``i``.
    """
    values = [f"{LETTER_VALUES[name]} AS {name}" for name in columns]
    what = ", ".join(["d.dead_letter_id::text AS __letter_id", *values])
    question = _of_positions(what, f"({condition}) ORDER BY i.position", ledger, request, first, last)
    return question.as_string(ledger.connection())


def topics_query(ledger: Ledger, request: ReplayRequest, first: int, last: int) -> str:
    """Return the question for the Kafka topics that these letters came from."""
    question = _of_positions("DISTINCT d.source ->> 'topic'", "true", ledger, request, first, last)
    return question.as_string(ledger.connection())


def count_unsendable(ledger: Ledger, request: ReplayRequest, first: int, last: int) -> int:
    """Return how many of these letters hold no record that could be sent to the topic it came from."""
    other = "NOT (d.raw_value IS NOT NULL AND d.source ? 'topic')"
    with classified("Looking at the letters of a replay"):
        row = ledger.connection().execute(_of_positions("count(*)", other, ledger, request, first, last)).fetchone()
    return int(row[0]) if row else 0


def count_letters_of(
    ledger: Ledger, request: ReplayRequest, first: int, last: int, conditions: Sequence[str]
) -> tuple[int, ...]:
    """Return how many of these letters meet each condition over what they were when they were taken, ``i``."""
    counts = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in conditions)
    question = sql.SQL(f"SELECT {counts} FROM {{schema}}.dead_letter_replay_item i WHERE {{mine}}").format(  # noqa: S608
        schema=sql.SQL(ledger.ident), mine=_mine(request.replay_id, first, last)
    )
    with classified("Looking at the letters of a replay"):
        row = ledger.connection().execute(question).fetchone()
    return tuple(int(number) for number in row or ())


def _of_positions(
    columns: str, rest: str, ledger: Ledger, request: ReplayRequest, first: int, last: int
) -> sql.Composed:
    # A dry run's letters are marked as its own in the transaction that is rolled back, not where they are read.
    status = "d.status IN ('pending', 'parked')" if request.dry_run else "d.status = 'replaying'"
    return sql.SQL(
        f"SELECT {columns} FROM {{schema}}.dead_letter_replay_item i, LATERAL ("  # noqa: S608 - constants of this package
        f"SELECT * FROM {{schema}}.dead_letter d WHERE d.dead_letter_id = i.dead_letter_id AND {status} OFFSET 0"
        f") AS d WHERE {{mine}} AND {rest}"
    ).format(schema=sql.SQL(ledger.ident), mine=_mine(request.replay_id, first, last))


def _mine(replay_id: UUID, first: int, last: int) -> sql.Composed:
    return sql.SQL("i.replay_id = {} AND i.position > {} AND i.position <= {}").format(
        sql.Literal(replay_id), sql.Literal(first), sql.Literal(last)
    )
