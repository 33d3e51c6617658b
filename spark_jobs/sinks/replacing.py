"""Of a micro-batch that is done again: what stands of it goes, in the transaction that writes its rows. Executor side.

The batch's row of ``batch_tracker`` is locked first: no two do it again at once, and no cleanup removes it meanwhile.
What goes must be what the ledger says that there is. Where it is not (rows from before ``load.batchColumn``, rows that
somebody has changed, letters that came home in a replay), new rows would stand beside old ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from spark_jobs.contracts.errors import ReprocessRefusedError
from spark_jobs.contracts.tracker.records import Books
from spark_jobs.faults import reach
from spark_jobs.sinks.cursor import Cursor


@dataclass(frozen=True, slots=True)
class Replacing:
    """What one micro-batch replaces, by statements that the driver rendered.

    :param key: the batch as it was: pipeline, query, batch id. :param source_rows: how many rows it had read.
    :param lock: locks its ledger row, and answers a value if it is there.
    :param standing: answers, as JSON, how many ``rows`` and ``letters`` there are of it by the ledger.
    :param close: gives up its letters that wait.
    :param letters: answers, as JSON, what became of its letters.
    :param remove: removes its rows from the target, and answers how many; empty where rows are merged by their keys.
    :param record: says what it was and is. Parameters: rows and letters before, rows and letters now.
    :param dry_run: whether everything is rolled back at the end.
    """

    key: tuple[str, str, str]
    source_rows: int
    lock: str
    standing: str
    close: str
    letters: str
    remove: str
    record: str
    dry_run: bool


def make_room(cursor: Cursor, replacing: Replacing) -> None:
    """Take away what stands of the batch.

    :raises ReprocessRefusedError: it is not what the ledger says that it is.
    """
    if cursor.scalar(replacing.lock) is None:
        raise _refused(
            replacing,
            found="no row of it in batch_tracker",
            expected="the row that says what it read and wrote",
            cure="A cleanup has removed it meanwhile; begin anew with the micro-batches that are there",
        )
    # A statement of its own: it sees what whoever held the lock before has committed.
    standing = json.loads(cursor.scalar(replacing.standing))
    if standing["letters"]:
        _close_letters(cursor, replacing, standing["letters"])
    if replacing.remove:
        _remove_rows(cursor, replacing, standing["rows"])
    reach("reprocess.after_removing")


def record_replaced(cursor: Cursor, replacing: Replacing, books: Books) -> None:
    """Say in the ledger what the batch was and is.

    :raises ReprocessRefusedError: the source has not given the rows that it gave then.
    """
    if books.source != replacing.source_rows:
        raise _refused(
            replacing,
            found=f"the source gives {books.source} rows of its range now",
            expected=f"{replacing.source_rows} rows, as it gave then: others would be lost",
            cure="Are records or files gone, or does another setting of the source read them otherwise? What is in the "
            "target stays as it is",
        )
    standing = json.loads(cursor.scalar(replacing.standing))
    letters = books.dead_lettered + books.write_dead_lettered
    numbers = (standing["rows"], standing["letters"], books.written, letters)
    cursor.execute(replacing.record, tuple(map(str, numbers)))


def _close_letters(cursor: Cursor, replacing: Replacing, expected: int) -> None:
    cursor.run(replacing.close)
    if not replacing.remove:
        # Rows that are merged by their keys are there once, whichever way they came.
        return
    found = json.loads(cursor.scalar(replacing.letters))
    if found["home"]:
        raise _refused(
            replacing,
            found=f"{found['home']} of its dead letters came home by a replay, are in one, or were sent to their topic",
            expected="letters that wait, or were given up: the rows of the others would come a second time",
            cure="Leave this micro-batch out, or replay what still waits instead",
        )
    if found["known"] != expected:
        raise _refused(
            replacing,
            found=f"{found['known']} of its {expected} dead letters are in the table dead_letter",
            expected="all of them: those that a cleanup has removed may have come home by a replay",
            cure="Leave this micro-batch out",
        )


def _remove_rows(cursor: Cursor, replacing: Replacing, expected: int) -> None:
    removed = int(cursor.scalar(replacing.remove))
    if removed != expected:
        raise _refused(
            replacing,
            found=f"{removed} rows of the target name it, or could be removed",
            expected=f"the {expected} rows that the ledger says it wrote: others would stand beside the new ones",
            cure="Was it written before load.batchColumn was set, or has somebody changed its rows? Then bring the "
            "table in order by hand, or leave this micro-batch out",
        )


def _refused(replacing: Replacing, *, found: str, expected: str, cure: str) -> ReprocessRefusedError:
    pipeline_id, query_id, batch_id = replacing.key
    return ReprocessRefusedError(
        f"Micro-batch {batch_id} of query {query_id} of pipeline {pipeline_id!r} cannot be done again",
        found=found,
        expected=expected,
        cure=f"Nothing of it was written. {cure}",
    )
