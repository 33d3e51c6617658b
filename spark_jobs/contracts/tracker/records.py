"""What one committed micro-batch is, as plain data. Standard library only: executors import it.

Rows and offsets leave here as JSON text, which :mod:`spark_jobs.contracts.tracker.statements` turns into table rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

from spark_jobs.contracts.errors import BooksDoNotBalanceError, CheckpointMismatchError, LedgerConflictError

Offsets = Any
"""A source offset as Spark's offset log gives it: any JSON value, None before the first batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Where the rows of a micro-batch went. All values are numbers of rows.

    ``source = passed + rejected + dead_lettered + late + filtered + deduplicated`` and
    ``sink = written + write_dead_lettered + write_deduplicated``. For a stateless pipeline ``passed == sink`` as well,
    but an aggregation lies between the two otherwise, so that is the caller's to check.
    """

    source: int
    passed: int
    rejected: int = 0
    dead_lettered: int = 0
    late: int = 0
    filtered: int = 0
    deduplicated: int = 0
    sink: int
    written: int
    write_dead_lettered: int = 0
    write_deduplicated: int = 0

    def __add__(self, other: Books) -> Books:
        return Books(**{name: getattr(self, name) + getattr(other, name) for name in BOOK_NAMES})

    @classmethod
    def empty(cls) -> Books:
        """Return the books of a batch without rows; the neutral element of ``+``."""
        return cls(source=0, passed=0, sink=0, written=0)

    @property
    def source_accounted(self) -> int:
        """Source rows whose whereabouts are known."""
        return self.passed + self.rejected + self.dead_lettered + self.late + self.filtered + self.deduplicated

    @property
    def sink_accounted(self) -> int:
        """Sink rows whose whereabouts are known."""
        return self.written + self.write_dead_lettered + self.write_deduplicated

    def verify(self) -> Books:
        """Return these books unchanged.

        :raises BooksDoNotBalanceError: if a side does not add up, or a number is negative.
        """
        problems = [f"{name} is {getattr(self, name)}" for name in BOOK_NAMES if getattr(self, name) < 0]
        if self.source != self.source_accounted:
            problems.append(f"{self.source} source rows, {self.source_accounted} accounted for")
        if self.sink != self.sink_accounted:
            problems.append(f"{self.sink} sink rows, {self.sink_accounted} accounted for")
        if problems:
            raise BooksDoNotBalanceError(
                "The micro-batch's books do not balance",
                found=f"{'; '.join(problems)} ({self})",
                expected="source = passed + rejected + dead-lettered + late + filtered + deduplicated, and "
                "sink = written + dead-lettered + deduplicated at writing",
                cure="nothing was committed; run the pipeline again, it starts at the same micro-batch",
            )
        return self

    def to_columns(self) -> dict[str, int]:
        """Return the columns ``source_rows`` … ``write_deduplicated_rows`` of ``batch_tracker``."""
        return {f"{name}_rows": getattr(self, name) for name in BOOK_NAMES}


BOOK_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Books))
"""The names of all books; ``batch_tracker`` has a column ``<name>_rows`` for each."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a micro-batch read. ``modified_at`` must know its time zone."""

    path: str
    modified_at: datetime
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the file as a row of ``batch_file``, without the batch's identity."""
        return {"path": self.path, "modified_at": _instant(self.modified_at), "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class SourceGap:
    """Source rows that were gone before they could be read; ``missing_rows`` is None where nobody can tell."""

    source: Mapping[str, Any]
    missing_rows: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the gap as a row of ``source_gap``, without the batch's identity."""
        return {"source": dict(self.source), "missing_rows": self.missing_rows, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchIdentity:
    """Which micro-batch it is: the key, and the source range that belongs to it.

    For files an offset is only a number, so the digest of the source log's entry is part of the identity.
    """

    pipeline_id: str
    query_id: str
    batch_id: int
    start_offsets: Offsets = None
    end_offsets: Offsets = None
    source_digest: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """The three text parameters that ``find_batch`` and ``count_duplicate`` take."""
        return self.pipeline_id, self.query_id, str(self.batch_id)

    def require_not_removed(self, removed: bool) -> None:
        """Return if no cleanup has removed the batch, which was committed then.

        :raises CheckpointMismatchError: one has: its rows are in the target already.
        """
        if removed:
            raise _removed(self)

    def to_json(self) -> dict[str, Any]:
        """Return the identity as columns of ``batch_tracker``."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """What the ledger holds under a key: the answer of ``find_batch``."""

    start_offsets: Offsets
    end_offsets: Offsets
    source_digest: str | None
    run_id: str
    epoch: int
    status: str

    @classmethod
    def from_json(cls, text: str) -> StoredBatch:
        """Read the one text column that ``find_batch`` returns."""
        return cls(**json.loads(text))


def settle(existing: StoredBatch | None, identity: BatchIdentity) -> Literal["absent", "committed", "decided"]:
    """Say whether a micro-batch is in the ledger.

    :returns: ``absent`` (write it), ``committed`` (skip it and count a duplicate) or ``decided`` (finish it first).
    :raises LedgerConflictError: if the ledger holds the same key with another source range. It is never skipped.
    :raises CheckpointMismatchError: if it was committed, and a cleanup has removed its row since.
    """
    if existing is None:
        return "absent"
    if existing.status == "removed":
        raise _removed(identity)
    different = [
        f"{name}: the ledger has {_text(getattr(existing, name))}, the checkpoint has {_text(getattr(identity, name))}"
        for name in ("start_offsets", "end_offsets", "source_digest")
        if _text(getattr(existing, name)) != _text(getattr(identity, name))
    ]
    if not different:
        return "decided" if existing.status == "decided" else "committed"
    raise LedgerConflictError(
        f"Micro-batch {identity.batch_id} of query {identity.query_id} of pipeline {identity.pipeline_id!r} is in the "
        "ledger with another source range",
        found="; ".join(different),
        expected="the same offsets under the same pipeline, query and batch id",
        cure="do not delete or edit parts of a checkpoint; restore it, or start a new one with --resume-from-ledger",
    )


def _removed(identity: BatchIdentity) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"Micro-batch {identity.batch_id} of query {identity.query_id} of pipeline {identity.pipeline_id!r} was "
        "committed long ago: a cleanup has removed its row from the ledger",
        found="a checkpoint that is older than all micro-batches that the ledger kept; nothing was written",
        expected="a checkpoint that goes on behind removed_through_batch of the table batch_retention: what was before "
        "is in the target already, and would be loaded twice",
        cure="Restore a newer copy of the checkpoint; or move it away and start once with --resume-from-ledger "
        "(operator: resume='from_ledger'). Let BatchTrackerCleanupOperator keep what your oldest copy may run again",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One committed micro-batch: the ledger row, its files and its gaps.

    :param follows: whether the ledger must hold the query's batch before: a server that lost it has lost its rows.
    """

    identity: BatchIdentity
    run_id: str
    epoch: int
    checkpoint_location: str
    books: Books
    duration_ms: int
    strategy: str
    strategy_reason: str
    watermark: datetime | None = None
    event_time_min: datetime | None = None
    event_time_max: datetime | None = None
    state_rows: int | None = None
    files: Sequence[SourceFile] = field(default=())
    gaps: Sequence[SourceGap] = field(default=())
    follows: bool = False

    def require_previous(self, there: bool) -> None:
        """Return if the batch before is there, or needs not be.

        :raises CheckpointMismatchError: the database has forgotten it.
        """
        if self.follows and not there:
            raise CheckpointMismatchError(
                f"The ledger does not hold micro-batch {self.identity.batch_id - 1} any more",
                found=f"micro-batch {self.identity.batch_id} of query {self.identity.query_id}, and none before it",
                expected="the one before, which this query has committed: its rows are gone with it",
                cure="Nothing of this micro-batch was written. Was the database restored, or did a standby take over "
                "that was behind? If its rows are really gone, move the checkpoint away and start once with "
                "--resume-from-ledger (operator: resume='from_ledger')",
            )

    @property
    def right(self) -> tuple[str, str, str]:
        """What the fence is asked with: pipeline id, epoch, run id."""
        return self.identity.pipeline_id, str(self.epoch), self.run_id

    def to_row(self) -> dict[str, Any]:
        """Return the ledger row, ready for JSON; its keys are columns of ``batch_tracker``.

        :raises BooksDoNotBalanceError: if the books do not balance.
        """
        return {
            **self.identity.to_json(),
            "record_count": self.books.written,
            "checkpoint_location": self.checkpoint_location,
            "run_id": self.run_id,
            "epoch": self.epoch,
            "watermark": _instant(self.watermark),
            "event_time_min": _instant(self.event_time_min),
            "event_time_max": _instant(self.event_time_max),
            "duration_ms": self.duration_ms,
            **self.books.verify().to_columns(),
            "strategy": self.strategy,
            "strategy_reason": self.strategy_reason,
            "state_rows": self.state_rows,
        }

    def row_json(self) -> str:
        """Return the parameter of ``insert_batch``."""
        return json.dumps(self.to_row())

    def files_json(self) -> str:
        """Return the parameter of ``insert_files``."""
        return json.dumps({**self._key(), "files": [file.to_json() for file in self.files]})

    def gaps_json(self) -> str:
        """Return the parameter of ``insert_gaps``."""
        return json.dumps({**self._key(), "gaps": [gap.to_json() for gap in self.gaps]})

    def _key(self) -> dict[str, Any]:
        identity = self.identity
        return {
            "pipeline_id": identity.pipeline_id,
            "query_id": identity.query_id,
            "batch_id": identity.batch_id,
        }


def _instant(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        # PostgreSQL would read it in the session's time zone, which is the server's choice.
        raise ValueError(f"a ledger time needs a time zone: {moment.isoformat()}")
    return moment.isoformat()


def _text(value: Offsets) -> str:
    return json.dumps(value, sort_keys=True)
