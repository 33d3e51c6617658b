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
from spark_jobs.contracts.tracker.taking_statements import SENDABLE
from spark_jobs.sinks.committing import CommitPlan
from spark_jobs.sinks.dead_letter_rows import LETTER_COLUMNS
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.settling import Settling
from spark_jobs.sinks.settling_statements import (
    AGAIN,
    ALL_HOME,
    APART_AGAIN,
    APART_DRY,
    HOME,
    KINDS,
    OUTCOME,
    TAKE,
    UNMARK,
)
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


@dataclass(frozen=True, slots=True)
class ReplayPlans(Plans):
    """Makes the plans of one replay's micro-batches; they are of the strategy ``single``.

    :param replay_id: whose letters they are. :param max_attempts: failures after which a letter is parked.
    :param dry_run: whether everything is rolled back at the end.
    :param keeps_raw: whether a letter's raw value is the record of the source, from which its row is made again.
    """

    replay_id: UUID = field(default_factory=uuid4)
    max_attempts: int = 1
    dry_run: bool = False
    keeps_raw: bool = False

    def commit(
        self, record: BatchRecord, event: dict[str, Any], where: str, *staged: Staged | None, hands_over: bool = False
    ) -> CommitPlan:
        """Return the plan of a transaction's end, which settles the letters of the batch's positions."""
        plan = Plans.commit(self, record, event, where, *staged, hands_over=hands_over)
        return replace(
            plan,
            before_letters=self._text(APART_AGAIN),
            letters=self._text(AGAIN),
            settling=self.settling(record),
        )

    def settling(self, record: BatchRecord) -> Settling:
        """Return what becomes of the letters whose positions are the batch's offsets."""
        return _settling(self.ledger, self.replay_id, record, dry_run=self.dry_run)

    def _text(self, statement: str) -> str:
        text = statement.replace("{record}", "d.raw_value IS NOT NULL" if self.keeps_raw else "false")
        return _rendered(text, self.ledger, self.replay_id, most=self.max_attempts)


def redrive_settling(ledger: Ledger, request: ReplayRequest, record: BatchRecord) -> Settling:
    """Return what becomes of letters whose records were sent: all of them come home, and the mark goes."""
    settling = _settling(ledger, request.replay_id, record, dry_run=request.dry_run)
    unmark = _rendered(UNMARK, ledger, request.replay_id, record=record)
    return settling if request.dry_run else replace(settling, unmark=unmark)


def positions(record: BatchRecord) -> tuple[int, int]:
    """Return the batch's offsets: its letters' positions are above the first, up to the last."""
    key = record.identity
    return int(key.start_offsets["position"]), int(key.end_offsets["position"])


def _settling(ledger: Ledger, replay_id: UUID, record: BatchRecord, *, dry_run: bool) -> Settling:
    first, last = positions(record)
    apart, take, home, all_home, outcome = (
        _rendered(text, ledger, replay_id, record=record) for text in (APART_DRY, TAKE, HOME, ALL_HOME, OUTCOME)
    )
    return Settling(last - first, (apart, take), home, all_home, outcome, dry_run)


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
            whole=_whole(replay_id, first, last),
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
    singles = _of_positions(what, f"({condition}) ORDER BY i.position", ledger, request, first, last)
    if request.dry_run:
        return singles.as_string(ledger.connection())
    bundles = sql.SQL(
        f"SELECT {what} FROM {{schema}}.dead_letter_replay_bundle i, LATERAL ("  # noqa: S608 - constants of this package
        "SELECT l.*, b.attempt FROM {schema}.dead_letter_bundle b JOIN {schema}.dead_letter_bundled l "
        "USING (bundle_id) WHERE b.bundle_id = i.bundle_id AND b.status = 'replaying' AND b.replay_id = i.replay_id "
        f"OFFSET 0) AS d WHERE {{whole}} AND ({condition}) ORDER BY i.first_position"
    ).format(schema=sql.SQL(ledger.ident), whole=_whole(request.replay_id, first, last))
    return sql.SQL("({}) UNION ALL ({})").format(singles, bundles).as_string(ledger.connection())


def partitions_query(ledger: Ledger, request: ReplayRequest, first: int, last: int) -> str:
    """Return the question for the topics and partitions that these letters came from."""
    places = "DISTINCT d.source ->> 'topic', (d.source ->> 'partition')::int"
    return _of_positions(places, "true", ledger, request, first, last).as_string(ledger.connection())


def count_unsendable(ledger: Ledger, request: ReplayRequest, first: int, last: int) -> int:
    """Return how many of these letters hold no record that could be sent to the topic it came from."""
    other = f"NOT ({SENDABLE})"
    with classified("Looking at the letters of a replay"):
        row = ledger.connection().execute(_of_positions("count(*)", other, ledger, request, first, last)).fetchone()
    return int(row[0]) if row else 0


def count_letters_of(
    ledger: Ledger, request: ReplayRequest, first: int, last: int, conditions: Sequence[str]
) -> tuple[int, ...]:
    """Return how many of these letters meet each condition over what they were when they were taken, ``i``."""
    counts = ", ".join(f"coalesce(sum(letters) FILTER (WHERE {condition}), 0)" for condition in conditions)
    question = sql.SQL(f"SELECT {counts} FROM ({KINDS}) AS i").format(  # noqa: S608 - constants of this package
        schema=sql.SQL(ledger.ident),
        mine=_mine(request.replay_id, first, last),
        whole=_whole(request.replay_id, first, last),
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
        f"SELECT * FROM {{schema}}.{{letters}} d WHERE d.dead_letter_id = i.dead_letter_id AND {status} OFFSET 0"
        f") AS d WHERE {{mine}} AND {rest}"
    ).format(
        schema=sql.SQL(ledger.ident),
        letters=sql.SQL("dead_letter" if request.dry_run else "dead_letter_single"),
        mine=_mine(request.replay_id, first, last),
    )


def _mine(replay_id: UUID, first: int, last: int) -> sql.Composed:
    return sql.SQL("i.replay_id = {} AND i.position > {} AND i.position <= {}").format(
        sql.Literal(replay_id), sql.Literal(first), sql.Literal(last)
    )


def _whole(replay_id: UUID, first: int, last: int) -> sql.Composed:
    return sql.SQL("i.replay_id = {} AND i.first_position >= {} AND i.last_position <= {}").format(
        sql.Literal(replay_id), sql.Literal(first), sql.Literal(last)
    )
