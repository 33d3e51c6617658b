"""The end of a batch's one transaction: dead letters, balanced books, notification, the fence's lock, COMMIT.

The same for an executor's task and for the driver; over ADBC, with texts that the driver rendered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from spark_jobs.contracts.errors import BooksDoNotBalanceError, EtlError, FencedError
from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.records import BatchRecord, Books, StoredBatch, settle
from spark_jobs.faults import reach
from spark_jobs.sinks import parts
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.replacing import Replacing, make_room, record_replaced
from spark_jobs.sinks.settling import Settling, settle_letters, take_letters
from spark_jobs.sinks.sorting import LetterSpool, moment
from spark_jobs.sinks.unaltered import TableState, require_unaltered


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """What the end of a batch's transaction needs.

    :param tracker: the tracker's schema, quoted.
    :param target: what the target must still be like.
    :param record: the ledger row but for its books and event times; its duration is what the batch took so far.
    :param event: the progress event as a JSON object, but for its ``rows``.
    :param letters: statement that stores a JSON array of dead letters.
    :param before_letters: of a replay: what is done before with the same array.
    :param letters_from: statements that take dead letters from where tasks staged them, and whose answer is their
        number, each with the number that must come out.
    :param where: first part of the names of its fault points.
    :param settling: of a replay: the letters whose rows the batch's are.
    :param fail_fast: whether the first dead letter ends the batch.
    :param hands_over: whether a batch with dead letters is the driver's to commit, which has them published first.
    :param replacing: of a micro-batch that is done again: what stands of it, which goes.
    """

    tracker: str
    target: TableState
    record: BatchRecord
    event: dict[str, Any]
    letters: str
    limit: Limit
    before_letters: str = ""
    letters_from: tuple[tuple[str, int], ...] = ()
    where: str = "single"
    settling: Settling | None = None
    fail_fast: bool = False
    hands_over: bool = False
    replacing: Replacing | None = None

    @property
    def letters_key(self) -> tuple[str, str, str]:
        """The batch that the dead letters are of."""
        return self.replacing.key if self.replacing else self.record.identity.key

    @property
    def is_dry(self) -> bool:
        """Whether everything is rolled back at the end."""
        return bool((self.settling and self.settling.dry_run) or (self.replacing and self.replacing.dry_run))


BooksOf = Callable[[PartReport], Books]

Publish = Callable[[Cursor, CommitPlan, LetterSpool], CommitPlan]
"""Has the letters written elsewhere as well, empties the spool, and returns the plan that stores them from then on."""


class LettersFoundError(EtlError):
    """A task found dead letters that must be published before the batch commits. It has written nothing."""


def stateless_books(report: PartReport) -> Books:
    """Return the books of a pipeline whose passed rows are the rows that reach the sink."""
    tally = report.tally
    return Books(
        source=tally.source,
        passed=tally.passed,
        dead_lettered=tally.dead_lettered,
        filtered=tally.filtered,
        sink=tally.passed,
        written=report.written,
        write_dead_lettered=report.refused,
        write_deduplicated=report.deduplicated,
    )


def is_committed(cursor: Cursor, plan: CommitPlan) -> bool:
    """Tell whether the ledger holds the batch already.

    :raises EtlError: it was decided and not finished: what comes first is not this transaction's to do.
    """
    stored = cursor.scalar(statements.find_batch(plan.tracker), plan.record.identity.key)
    state = settle(StoredBatch.from_json(stored) if stored else None, plan.record.identity)
    if state == "decided":
        raise EtlError(
            "The micro-batch was decided and is not finished", cure="Run the pipeline again: it is finished first"
        )
    return state == "committed"


def require_newest(cursor: Cursor, plan: CommitPlan) -> None:
    """Ask, without a lock, whether this run is still the newest: a late task then takes no locks of the target.

    :raises FencedError: a newer run has taken over.
    """
    record = plan.record
    if cursor.scalar(statements.read_epoch(plan.tracker), record.right) is not True:
        raise fenced(record.identity.pipeline_id, record.run_id, record.epoch)


def begin_batch(cursor: Cursor, plan: CommitPlan) -> bool:
    """Ask whether the batch is still to be written by this run, before its transaction takes locks of the target.

    :raises FencedError: a newer run has taken over. :raises EtlError: see :func:`is_committed`.
    """
    require_newest(cursor, plan)
    if is_committed(cursor, plan):
        return False
    if plan.settling:
        take_letters(cursor, plan.settling)
    if plan.replacing:
        make_room(cursor, plan.replacing)
    return True


def commit(
    cursor: Cursor,
    plan: CommitPlan,
    report: PartReport,
    letters: LetterSpool,
    books: Books,
    started: float,
    publish: Publish | None = None,
) -> None:
    """Write everything that belongs to the batch beside its rows, and commit.

    Sets the report's state: ``unknown`` from the moment COMMIT is sent until its answer is there.

    :param publish: of the driver, where dead letters are written elsewhere as well.

    :raises BooksDoNotBalanceError: nothing is committed. :raises FencedError: a newer run has taken over.
    :raises TooManyDeadLettersError: nothing is committed. :raises TargetAlteredError: nothing is committed.
    :raises LettersNotPublishedError: nothing is committed. :raises LettersFoundError: nothing is committed.
    """
    require_unaltered(cursor, plan.target)
    check_limits(plan.limit, books)
    if publish is not None:
        plan = publish(cursor, plan, letters)
    write_letters(cursor, plan, letters)
    conclude(cursor, plan, report, books, started)


def conclude(cursor: Cursor, plan: CommitPlan, report: PartReport, books: Books, started: float) -> None:
    """Settle a replay's letters, write the ledger row, and commit; the end of :func:`commit`."""
    if plan.settling:
        report.message = settle_letters(cursor, plan.settling, failed=books.dead_lettered + books.write_dead_lettered)
    reach(f"{plan.where}.before_ledger")
    _write_ledger(cursor, plan, books, report, started)
    if plan.replacing:
        record_replaced(cursor, plan.replacing, books)
    reach(f"{plan.where}.before_commit")
    if plan.is_dry:
        cursor.run("ROLLBACK")
        report.state = parts.COMMITTED
        return
    report.state = parts.UNKNOWN
    cursor.run("COMMIT")
    report.state = parts.COMMITTED
    reach(f"{plan.where}.after_commit")


def check_limits(limit: Limit, books: Books) -> None:
    """Raise :class:`TooManyDeadLettersError` when the batch, read or written, is bad as a whole."""
    limit.check(books.dead_lettered, books.source, "could not be read, or transformed")
    limit.check(books.write_dead_lettered, books.sink, "were refused by the target")


def write_letters(cursor: Cursor, plan: CommitPlan, letters: LetterSpool) -> None:
    """Store the dead letters of this transaction's own rows, and those that tasks staged.

    :raises LettersFoundError: they are not this transaction's to store.
    """
    if plan.hands_over and letters.count:
        raise LettersFoundError("The micro-batch has dead letters, which are published before it commits")
    for chunk in letters.batches():
        for statement in filter(None, (plan.before_letters, plan.letters)):
            cursor.execute(statement, (*plan.letters_key, json.dumps(chunk)))
    for statement, expected in plan.letters_from:
        require_letters(int(cursor.scalar(statement)), expected)


def require_letters(found: int, expected: int) -> None:
    """Raise :class:`BooksDoNotBalanceError` when staged dead letters are gone: the table is empty after a crash."""
    if found != expected:
        raise BooksDoNotBalanceError(
            "The staging table does not hold the dead letters that the tasks staged",
            found=f"{found} dead letters",
            expected=f"{expected}",
            cure="Nothing was committed; the batch is done again (did the server restart?)",
        )


def completed(record: BatchRecord, books: Books, report: PartReport, started: float) -> BatchRecord:
    """Return the record with its books, event times and duration."""
    return replace(
        record,
        books=books,
        event_time_min=moment(report.tally.event_time_min) or record.event_time_min,
        event_time_max=moment(report.tally.event_time_max) or record.event_time_max,
        duration_ms=record.duration_ms + int((monotonic() - started) * 1000),
    )


def _write_ledger(cursor: Cursor, plan: CommitPlan, books: Books, report: PartReport, started: float) -> None:
    record = completed(plan.record, books, report, started)
    key = record.identity.key
    record.require_previous(not record.follows or cursor.scalar(statements.has_previous(plan.tracker), key) is True)
    cursor.execute(statements.insert_batch(plan.tracker), (record.row_json(),))
    record.identity.require_not_removed(cursor.scalar(statements.was_removed(plan.tracker), key) is True)
    if record.files:
        cursor.execute(statements.insert_files(plan.tracker), (record.files_json(),))
    if record.gaps:
        cursor.execute(statements.insert_gaps(plan.tracker), (record.gaps_json(),))
    cursor.execute(statements.notify(), (event_text(plan.event, books),))
    cursor.run(statements.bound_the_commit())
    if cursor.scalar(statements.lock_epoch(plan.tracker), record.right) is not True:
        raise fenced(record.identity.pipeline_id, record.run_id, record.epoch)


def event_text(event: dict[str, Any], books: Books) -> str:
    """Return the progress event as JSON."""
    return json.dumps({**event, "rows": books.written})


def fenced(pipeline_id: str, run_id: str, epoch: int) -> FencedError:
    """Return the error of a driver that a newer run has taken over from."""
    return FencedError(
        f"Run {run_id} (epoch {epoch}) of pipeline {pipeline_id} may not commit any more",
        found="a newer run of the pipeline was registered",
        expected="to be the pipeline's newest run",
        cure="Nothing was written by this run since; look at the newer run",
    )
