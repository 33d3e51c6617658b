"""Two-phase commits: deciding, finishing what was decided, rolling back what was not.

A batch's commit point is its decision, one transaction that holds the fence's lock. From then on the batch will be
committed, by its own driver, by the next run's or by ``etl-pipeline prepared resolve``; before it, never.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from psycopg.types.json import Jsonb

from spark_jobs.contracts.errors import BooksDoNotBalanceError, DecidedPartMissingError
from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.connect import Connection, classified, query, raw, short_transaction
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.prepared import prepared_names, resolve
from spark_jobs.contracts.tracker.records import BOOK_NAMES, BatchRecord, Books
from spark_jobs.contracts.tracker.statements import quote_identifier
from spark_jobs.faults import reach

_LOCK_TIMEOUT_MS = 60_000
_SINK_BOOKS = ("sink", "written", "write_dead_lettered", "write_deduplicated")
_DELETE_DECISION = "DELETE FROM {schema}.batch_decision WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s"
_PARTS = "SELECT name FROM {schema}.batch_part WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s"
_DELETE_PARTS = "DELETE FROM {schema}.batch_part WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s"
_MAY_FINISH = """
SELECT count(*) = 2 AND bool_and(has_schema_privilege(n.oid, 'USAGE')
    AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'DELETE'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname IN ('batch_decision', 'batch_part')
"""


@dataclass(frozen=True, slots=True)
class Winner:
    """A prepared part that belongs to its batch.

    :param rows: rows that it wrote to the target.
    :param books: its share of the batch's books, taken off them if the part is ever missing. For an aggregation's
        results only the sink's side: nobody can tell which source rows went into them. None: only ``rows`` is known.
    """

    name: str
    rows: int
    books: Books | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Winner:
        """Read what :meth:`to_json` gave, by this version or an older one."""
        books = stored.get("books")
        return cls(stored["name"], stored["rows"], Books(**books) if books else None)

    def to_json(self) -> dict[str, Any]:
        """Return the winner as ``batch_decision`` keeps it."""
        return {"name": self.name, "rows": self.rows, "books": asdict(self.books) if self.books else None}


class Finisher(Protocol):
    """Who may finish a decided batch."""

    @property
    def schema(self) -> str:
        """The tracker's schema."""

    def check(self, conn: Connection) -> None:
        """Lock the fence's row, last of all in the transaction."""


@dataclass(frozen=True, slots=True)
class Right:
    """The right to commit for a pipeline: the fence is asked for it in the last step of a transaction."""

    schema: str
    pipeline_id: str
    run_id: str
    epoch: int

    def check(self, conn: Connection) -> None:
        """Lock the fence's row and raise :class:`FencedError` when the right is gone."""
        check_fence(conn, self.schema, self.pipeline_id, self.run_id, self.epoch, lock=True)


@dataclass(frozen=True, slots=True)
class Decided:
    """A batch that was decided and is not committed yet."""

    pipeline_id: str
    query_id: str
    batch_id: int
    winners: tuple[Winner, ...]
    record: dict[str, Any]
    files: dict[str, Any] | None
    gaps: dict[str, Any] | None
    event: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, int]:
        """The batch's key in the ledger."""
        return self.pipeline_id, self.query_id, self.batch_id


def decide(conn: Connection, right: Right, record: BatchRecord, event: str, winners: Sequence[Winner]) -> None:
    """Decide that the winners' parts are the batch: the commit point.

    :param event: the progress event, as JSON.
    :raises BooksDoNotBalanceError: a winner is not prepared any more, and no newer run is the reason; nothing is
        decided, the batch is done again.
    :raises FencedError: a newer run has taken over.
    :raises CheckpointMismatchError: the database has forgotten the batch before.
    """
    row = record.row_json()
    with short_transaction(conn, "Deciding the micro-batch", lock_timeout_ms=_LOCK_TIMEOUT_MS):
        missing = {winner.name for winner in winners} - prepared_names(conn, right.schema, right.pipeline_id)
        if missing:
            # If a newer run has rolled them back, that is the error, and there is no batch to do again.
            right.check(conn)
            raise BooksDoNotBalanceError(
                f"Parts of micro-batch {record.identity.batch_id} are not prepared any more",
                found=f"no prepared transaction {', '.join(sorted(missing))}",
                expected="one for each part, as the tasks reported",
                cure="Nothing was committed; the batch is done again (did somebody roll them back?)",
            )
        previous = raw(conn, statements.has_previous(quote_identifier(right.schema)), *record.identity.key)
        record.require_previous(previous[0][0])
        query(
            conn,
            right.schema,
            "INSERT INTO {schema}.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, "
            "files, gaps, event) VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, %s::jsonb, %s::jsonb)",
            (
                *record.identity.key,
                record.epoch,
                record.run_id,
                Jsonb([winner.to_json() for winner in winners]),
                row,
                record.files_json() if record.files else None,
                record.gaps_json() if record.gaps else None,
                event,
            ),
        )
        right.check(conn)
        reach("two_phase.before_decision_commit")


def decided(conn: Connection, schema: str, pipeline_id: str | None = None) -> list[Decided]:
    """Return the batches that are decided and not finished, oldest first; of every pipeline when none is named."""
    with classified("Reading the decided micro-batches"):
        rows = query(
            conn,
            schema,
            "SELECT pipeline_id, query_id, batch_id, winners, record, files, gaps, event FROM {schema}.batch_decision "
            "WHERE %(pipeline)s::text IS NULL OR pipeline_id = %(pipeline)s ORDER BY decided_at, batch_id",
            {"pipeline": pipeline_id},
        ).fetchall()
    return [_decided(*row) for row in rows]


def _decided(pipeline_id: str, query_id: str, batch_id: int, winners: list[dict[str, Any]], *rest: Any) -> Decided:
    record, files, gaps, event = rest
    named = tuple(Winner.from_json(winner) for winner in winners)
    return Decided(pipeline_id, query_id, batch_id, named, record, files, gaps, event)


def may_finish(conn: Connection, schema: str) -> bool:
    """Tell whether the connection's role may finish decided batches: who may not must not decide any."""
    with classified("Asking whether decided micro-batches may be finished"):
        row = conn.execute(_MAY_FINISH, (schema,)).fetchone()
    return row is not None and row[0] is True


def commit_parts(conn: Connection, batch: Decided, role: str | None = None) -> None:
    """Commit the winners' prepared transactions; those that are committed already stay as they are.

    :param role: the role that prepared them, where it is not the connection's own.
    """
    for number, winner in enumerate(batch.winners):
        if number:
            reach("two_phase.between_commits")
        resolve(conn, winner.name, commit=True, role=role)


def finish(conn: Connection, right: Finisher, batch: Decided, *, accept_missing: bool = False) -> bool:
    """Turn a decided batch, whose parts were committed, into a committed one: ledger row and notification.

    :param accept_missing: record rows of a part that somebody rolled back by hand as a gap, instead of stopping.
    :returns: whether this call did it; False when somebody else had finished it.
    :raises DecidedPartMissingError: a part was rolled back by hand.
    :raises FencedError: a newer run has taken over; it finishes the batch.
    """
    schema = right.schema
    ident = quote_identifier(schema)
    with short_transaction(conn, "Finishing the micro-batch", lock_timeout_ms=_LOCK_TIMEOUT_MS):
        if not query(conn, schema, _DELETE_DECISION, batch.key).rowcount:
            return False
        there = {str(row[0]) for row in query(conn, schema, _PARTS, batch.key)}
        missing = [winner for winner in batch.winners if winner.name not in there]
        if missing and not accept_missing:
            raise _part_missing(batch, missing)
        done = _without(batch, missing) if missing else batch
        raw(conn, statements.insert_batch(ident), json.dumps(done.record))
        if done.files:
            raw(conn, statements.insert_files(ident), json.dumps(done.files))
        if done.gaps:
            raw(conn, statements.insert_gaps(ident), json.dumps(done.gaps))
        query(conn, schema, _DELETE_PARTS, batch.key)
        raw(conn, statements.notify(), json.dumps(done.event))
        right.check(conn)
        reach("two_phase.before_finish_commit")
    return True


def _part_missing(batch: Decided, missing: Sequence[Winner]) -> DecidedPartMissingError:
    rows = sum(winner.rows for winner in missing)
    return DecidedPartMissingError(
        f"Micro-batch {batch.batch_id} of pipeline {batch.pipeline_id!r} was decided, and a part of it is gone",
        found=f"{len(missing)} of {len(batch.winners)} parts rolled back by hand, with {rows} rows: "
        + ", ".join(winner.name for winner in missing),
        expected="every part: the others are in the target already",
        cure="Nothing brings those rows back by itself. `etl-pipeline prepared resolve --accept-missing` records them "
        "as a gap in the ledger, and the pipeline goes on after this batch; then load that gap again",
    )


def _without(batch: Decided, missing: Sequence[Winner]) -> Decided:
    gone = [_lost_books(winner, batch.record) for winner in missing]
    lost = sum(gone, Books.empty())
    record = {
        **batch.record,
        **{f"{name}_rows": batch.record[f"{name}_rows"] - getattr(lost, name) for name in BOOK_NAMES},
    }
    record["record_count"] = record["written_rows"]
    gap = {
        "source": {"parts": [winner.name for winner in missing], "rows": {k: v for k, v in asdict(lost).items() if v}},
        "missing_rows": sum(books.source or books.sink for books in gone),
        "reason": GAP_REASONS["rolled_back"],
    }
    query_id, batch_id = batch.query_id, batch.batch_id
    known = batch.gaps or {"pipeline_id": batch.pipeline_id, "query_id": query_id, "batch_id": batch_id, "gaps": []}
    gaps = {**known, "gaps": [*known["gaps"], gap]}
    return replace(batch, record=record, gaps=gaps, event={**batch.event, "rows": record["written_rows"]})


def _lost_books(winner: Winner, record: Mapping[str, Any]) -> Books:
    books = winner.books or Books(source=0, passed=0, sink=winner.rows, written=winner.rows)
    if not books.passed or record["sink_rows"] == record["passed_rows"]:
        return books
    # An aggregation lies between: what passed into it is still true, and not this part's number.
    sink = {name: getattr(books, name) for name in _SINK_BOOKS}
    return replace(Books.empty(), **sink)
